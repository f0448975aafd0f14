"""Chooses the form of every secret: where a mask is opened, what follows from masks for free.

Gates read masked operands. A mask is opened on the value a gate reads, except
- where it follows locally from values that are masked anyway (sums, differences, moved elements), and
- where several gates read parts of one tensor that together are no smaller than the tensor: then the
  tensor is masked once and the parts are taken from it, and
- where it is a truncated value that is selected by a bit, or that one product of elements reads: these work from the
  opening of what is truncated.
Each value is masked at most once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from protocols.gates import numel
from protocols.gates.sign import DIGIT_BITS, digit_count, groups, layer_of, leaf_planes, opened_planes
from protocols.linear import LAYOUT
from protocols.names import PUBLIC
from protocols.shares import words
from securemodel.compiler.ir import COMPARED, MEASURED, Graph, Mark, Node, Phase, phase_of
from securemodel.compiler.ops import FINAL, NARROWED, OUTPUTS, narrowed, opened_widths, position_width, shifted_bits
from securemodel.compiler.passes.reach import is_width

_FREE = frozenset({"add", "sub", "neg", "scale", "cat"})


def _is_public(graph: Graph, node_id: int) -> bool:
    return graph[node_id].op == "share" and graph[node_id].owner == PUBLIC


def _selected(graph: Graph, node: Node) -> Node:
    """What a select reads: the untruncated value where its operand is a truncation (they are fused)."""
    x = graph[node.args[1]]
    return graph[x.args[0]] if x.op == "truncate" else x


def _truncated_factors(graph: Graph) -> dict[int, int]:
    """Products of elements that nobody else reads a truncated operand of, and these: they need no opening of it."""
    live = _live(graph, {})
    readers: dict[int, int] = {}
    for node in graph.nodes:
        for a in node.args if node.id in live and node.op != "select" else ():
            readers[a] = readers.get(a, 0) + 1
    found = {}
    for node in graph.nodes:
        if node.id not in live or node.op != "bilinear" or node.attrs["kind"] != "mul" or not _factors(graph, node):
            continue
        alone = [a for a in node.args if graph[a].op == "truncate" and readers[a] == 1 and graph[a].shape == node.shape]
        if alone and not any(_is_public(graph, a) for a in graph[max(alone)].args):
            found[node.id] = max(alone)
    return found


def choose_masked(
    graph: Graph, contributors: Sequence[str] = (), fused: Mapping[int, int] = MappingProxyType({})
) -> tuple[set[int], set[int]]:
    """(values that need a masked form, those of them that get it for free from masked operands).

    `contributors` are owners who are no parties: nobody has what they give but in a masked form. `fused`: products with
    the operand whose truncation they make themselves.
    """
    live = _live(graph, fused)
    needed = {a for node in graph.nodes if node.id in live for a in _read_masked(graph, node, fused)}
    needed |= {node.id for node in graph.nodes if node.id in live and node.op == "share" and node.owner in contributors}
    while more := _operands_of_many_sums(graph, needed) - needed:  # of which some are sums themselves
        needed |= more
    free: set[int] = set()
    apart = _put_together(graph)
    pushed: dict[int, list[int]] = {}
    for node in reversed(graph.nodes):
        parts = pushed.get(node.id, [])
        if parts and (node.id in needed or sum(numel(graph[p].shape) for p in parts) >= numel(node.shape)):
            needed.add(node.id)
            free.update(parts)
        if node.id not in needed or node.op != "linear":
            continue
        if node.id in apart:
            needed.update(node.args)
            free.add(node.id)
        elif node.attrs["kind"] in _FREE and all(a in needed or graph[a].op == "share" for a in node.args):
            if any(graph[a].op != "share" or a in needed for a in node.args):
                needed.update(node.args)
                free.add(node.id)
        elif shifted_bits(node) and graph[node.args[0]].op != "share":  # of x, less is opened than of x 2^n
            needed.update(node.args)
            free.add(node.id)
        elif "cuts" in graph[node.args[0]].attrs:  # each coefficient is opened in the bytes that it needs
            continue
        elif node.attrs["kind"] in LAYOUT or node.attrs["kind"] == "index_sub":
            pushed.setdefault(node.args[0], []).append(node.id)
    return needed, free


def _put_together(graph: Graph) -> set[int]:
    """What consists of elements that owners give, side by side: each owner masks its own, and sends no other."""
    apart: set[int] = set()
    for node in graph.nodes:
        together = node.op == "linear" and node.attrs["kind"] == "cat"
        if together and all(graph[a].op == "share" or a in apart for a in node.args):
            apart.add(node.id)
    return apart


def _operands_of_many_sums(graph: Graph, needed: set[int]) -> set[int]:
    """Values that are fewer than the needed sums and differences of them, as where all pairs are compared, or where the
    largest one is found and taken from all; and what moves their elements to where these are needed.

    What repeats elements of a value, or moves them, counts as that value.
    """
    group: dict[int, int] = {}

    def find(a: int) -> int:
        while group.setdefault(a, a) != a:
            a = group[a]
        return a

    sums = [n for n in graph.nodes if n.id in needed and _of_few(graph, n)]
    terms = {n.id: [a for a in n.args if not _is_public(graph, a)] for n in sums}
    for node in sums:
        for a in terms[node.id]:
            group[find(a)] = find(terms[node.id][0])
    cost: dict[int, int] = {}
    for node in sums:
        for a in terms[node.id][:1]:
            cost[find(a)] = cost.get(find(a), 0) - numel(node.shape)
    operands = {a for args in terms.values() for a in args}
    parts: dict[int, list[tuple[int, set[int]]]] = {}
    for node in graph.nodes:
        if node.id in needed:
            base, way = _made_of(graph, node.id)
            if way and base in operands:
                parts.setdefault(base, []).append((numel(node.shape), way))
    for base, read in parts.items():  # opened apart, they would cost no more than this
        cost[find(base)] = cost.get(find(base), 0) - min(sum(size for size, _ in read), numel(graph[base].shape))
    counted = {_moved(graph, a): a for a in operands - needed}
    for base, a in counted.items():
        cost[find(a)] += numel(graph[base].shape)
    chosen = {a for a in operands if graph[a].op != "share" and cost[find(a)] < 0}
    return chosen.union(*(way for base in chosen for _, way in parts.get(base, ())))


def _of_few(graph: Graph, node: Node) -> bool:
    """Whether a node is a sum or difference, or a multiple of a difference, which others may read, too."""
    if node.op != "linear":
        return False
    of = graph[node.args[0]]
    multiple = node.attrs["kind"] == "scale" and of.op == "linear" and of.attrs["kind"] == "sub"
    return multiple or node.attrs["kind"] in ("add", "sub")


def _made_of(graph: Graph, a: int) -> tuple[int, set[int]]:
    """The value that all elements of a value are of, or differences of, and what they go through on the way from it."""
    node = graph[a]
    if node.op != "linear" or not (node.attrs["kind"] in LAYOUT or node.attrs["kind"] in ("index_sub", "cat")):
        return a, set()
    found = [_made_of(graph, arg) for arg in dict.fromkeys(node.args)]
    if len({base for base, _ in found}) > 1:
        return a, set()
    return found[0][0], {a}.union(*(way for _, way in found))


def _moved(graph: Graph, a: int) -> int:
    """The value that a value has all its elements of, where that is no larger."""
    while graph[a].op == "linear" and graph[a].attrs["kind"] in LAYOUT:
        inner = graph[a].args[0]
        if numel(graph[inner].shape) > numel(graph[a].shape):
            break
        a = inner
    return a


def _live(graph: Graph, fused: Mapping[int, int]) -> set[int]:
    live = {node.id for node in graph.nodes if node.op in FINAL}
    for node in reversed(graph.nodes):
        if node.id not in live:
            continue
        if node.op == "select" and graph[node.args[1]].op == "truncate":
            live.update((node.args[0], _selected(graph, node).id))
        elif node.id in fused:
            live.update(_read_masked(graph, node, fused))
        else:
            live.update(node.args)
    return live


def _read_masked(graph: Graph, node: Node, fused: Mapping[int, int]) -> tuple[int, ...]:
    """What a node reads in masked form."""
    if node.id not in fused:
        return RULES[node.op].reads_masked(graph, node)
    return (*_others(node, fused), graph[fused[node.id]].args[0])


def _others(node: Node, fused: Mapping[int, int]) -> list[int]:
    return [a for a in node.args if a != fused[node.id]]


def _roundings(
    graph: Graph, live: set[int], fused: Mapping[int, int]
) -> tuple[dict[int, int], dict[int, list[tuple[int, int]]]]:
    """(comparisons that may see a value as it is rounded: the truncation; bits and offsets of exact truncations by value).

    Such a comparison is one of the rounded value, or it has no other use than to select what the truncation of the same
    value gives: if that is 0, either sign will do.
    """
    rounded: dict[int, set[tuple[int, int]]] = {}
    signs: dict[int, int | None] = {}
    truncations: dict[tuple[int, int], int] = {}
    for node in graph.nodes:
        truncation = graph[node.args[1]] if node.op == "select" else graph[fused.get(node.id, node.id)]
        exact = truncation.op == "truncate" and "offset" in truncation.attrs
        if exact and node.id in live:
            rounded.setdefault(truncation.args[0], set()).add((truncation.attrs["bits"], truncation.attrs["offset"]))
            if truncation.attrs["offset"] == (1 << truncation.attrs["bits"]) // 2:
                truncations[truncation.args[0], truncation.attrs["bits"]] = truncation.id
        read = node.args if node.id in live and node.op != "beyond" else ()
        for bit in (graph[a] for a in read if graph[a].op == "is_negative"):
            same = exact and node.op == "select" and truncation.args == bit.args
            known = signs.get(bit.id, truncation.id)
            signs[bit.id] = truncation.id if same and known == truncation.id else None
    for bit in graph.nodes:
        if bit.op == "is_negative" and bit.id in live and (bit.attrs["rounded"] or bit.attrs["offset"]):
            signs[bit.id] = truncations.get((bit.args[0], bit.attrs["rounded"]))
    return {bit: at for bit, at in signs.items() if at is not None}, {x: sorted(p) for x, p in rounded.items()}


@dataclass
class _Pass:
    old: Graph
    new: Graph
    floats: dict[int, int]
    needed: set[int]
    free: set[int]
    parties: int
    serves: bool
    fused: Mapping[int, int]
    signs: dict[int, int]
    rounded: dict[int, list[tuple[int, int]]]
    additive_of: dict[int, int] = field(default_factory=dict)
    masked_of: dict[int, int] = field(default_factory=dict)
    bits_of: dict[int, int] = field(default_factory=dict)
    carries: dict[tuple[int, int, int], int] = field(default_factory=dict)
    encoded: dict[int, int] = field(default_factory=dict)
    seen: dict[int, dict[str, int]] = field(default_factory=dict)

    @cached_property
    def selecting(self) -> dict[int, list[int]]:
        """`signs` the other way round."""
        out: dict[int, list[int]] = {}
        for sign, truncation in self.signs.items():
            out.setdefault(truncation, []).append(sign)
        return out

    def keep_marks(self) -> None:
        """Marks the values that were made as they were before, and what is truncated in place of what a product reads."""
        fused = set(self.fused.values())
        for node in self.old.nodes:
            at, cut = (node.args[0], node.attrs["bits"]) if node.id in fused else (node.id, 0)
            new_id = self.additive_of.get(at, self.masked_of.get(at))
            if new_id is not None and self.new[new_id].op == "to_additive":
                (new_id,) = self.new[new_id].args  # the form that others follow from
            if node.marks and new_id is not None:
                kept = [mark for mark in node.marks if not _of_opening(mark)]
                self.new[new_id].marks += tuple(replace(mark, frac=mark.frac + cut) for mark in kept)
            read_at = self.additive_of.get(node.id) if node.op == "reveal" else self.masked_of.get(node.id)
            if read_at is not None:
                self.new[read_at].marks += tuple(mark for mark in node.marks if _of_opening(mark))

    def _add(
        self, like: Node, op: str, args, form: str, shape=None, attrs=None, owner=None, phase: Phase | None = None
    ) -> int:
        shape = like.shape if shape is None else shape
        frac = like.frac if form in ("additive", "masked", "window", "public", "float") else None
        node = self.new.add(op, args, shape, form, frac=frac, owner=owner, attrs=attrs or {}, source=like.source)
        alone = op in OUTPUTS or not node.args
        node.phase = phase or ("run" if alone else phase_of([self.new[a] for a in node.args], node.attrs))
        return node.id

    def _encode(self, node: Node) -> int:
        if node.id not in self.encoded:
            at = self.floats[node.attrs["float"]]
            self.encoded[node.id] = self._add(node, "encode", [at], "public", phase=node.phase)
        return self.encoded[node.id]

    def additive(self, node_id: int) -> int:
        """The additive form of a value."""
        if node_id not in self.additive_of:
            node = self.old[node_id]
            shared = node.op == "share" and (node_id in self.masked_of or node.owner != PUBLIC)
            shared = shared and not self._enters_as_shares(node)
            if (node_id in self.needed or node_id in self.masked_of) and (node_id in self.free or shared):
                self.additive_of[node_id] = self._add(node, "to_additive", [self.masked(node_id)], "additive")
            else:
                self.additive_of[node_id] = RULES[node.op].make(self, node)
        return self.additive_of[node_id]

    def masked(self, node_id: int) -> int:
        """The masked form of a value that needs one."""
        if node_id not in self.masked_of:
            node = self.old[node_id]
            if node.op == "share" and node.owner == PUBLIC:
                new_id = self._add(node, "public_masked", [self._encode(node)], "masked")
            elif node.op == "share" and not self._enters_as_shares(node):
                at = self.floats[node.attrs["float"]]
                new_id = self._add(node, "input", [at], "masked", owner=node.owner, phase=node.phase)
            elif node.op == "window":
                new_id = self.window(node)
            elif node_id in self.free:
                new_id = self._add(node, "linear", [self.masked(a) for a in node.args], "masked", attrs=node.attrs)
            else:
                new_id = self._add(node, "mask", [self.additive(node_id)], "masked", attrs={"width": 64})
            self.masked_of[node_id] = new_id
        return self.masked_of[node_id]

    def _enters_as_shares(self, node: Node) -> bool:
        """Whether all parties mask an owner's value together: a weight of which they may keep shares."""
        return self.serves and node.phase == "load" and node.owner != PUBLIC

    def bit(self, node_id: int) -> int:
        """The masked form of a secret bit."""
        if node_id not in self.bits_of:
            node = self.old[node_id]
            self.bits_of[node_id] = RULES[node.op].make(self, node)
        return self.bits_of[node_id]

    def either(self, node: Node) -> int:
        args = [self.bit(a) for a in node.args]
        return self._add(node, "xor", args, "masked_bits", self.new[args[0]].shape)

    def all_of(self, node: Node) -> int:
        shape = (1, words(numel(node.shape)))
        bits = self._add(node, "conjunction", [self.bit(node.args[0])], "bits", shape, node.attrs)
        return self._add(node, "mask_bits", [bits], "masked_bits", shape)

    def is_negative(self, node: Node) -> int:
        """The comparison of protocols.gates.sign, layer by layer; where it may be, of the same digits as a carry."""
        x, count = self.masked(node.args[0]), words(numel(node.shape))
        shift, low_bits = node.attrs["shift"], node.attrs["low_bits"]
        rounded, offset = node.attrs["rounded"], node.attrs["offset"]
        if not (rounded or offset) and node.id in self.signs and self.old[self.signs[node.id]].attrs["bits"] < low_bits:
            truncation = self.old[self.signs[node.id]].attrs
            rounded, offset = truncation["bits"], truncation["offset"]
        seen = {"bit": [shift + low_bits], "offset": [offset]}
        self.seen[node.id] = {"bit": shift + low_bits, "offset": offset}
        top = self._add(node, "top_bit", [x], "bits", (1, count), seen)
        bits = self._compared(node, x, shift, low_bits, rounded, offset)
        sign = self._add(node, "xor", [bits, top], "bits", (1, count))
        return self._add(node, "mask_bits", [sign], "masked_bits", (1, count))

    def _compared(self, node: Node, x: int, shift: int, low_bits: int, rounded: int, offset: int) -> int:
        """Whether m + offset is below the mask, in `low_bits` bits from `shift` up; notes the carry of `rounded` bits."""
        short, count = -rounded % DIGIT_BITS if shift >= 0 else 0, words(numel(node.shape))
        window = {"shift": [shift - short], "low_bits": low_bits + short, "offset": [offset]}
        digits, apart = digit_count(low_bits + short), digit_count(rounded)
        bits = self._add(node, "digits", [x], "bits", (leaf_planes(digits), count), window)
        while digits > 1:
            ends = apart == 1
            attrs = {"digits": digits, **({"apart": apart} if apart > 1 else {})}
            shape = (len(opened_planes(*layer_of(attrs))), count)
            opened = self._add(node, "mask_bits", [bits], "masked_bits", shape, attrs)
            if ends:
                carry = self._add(node, "part", [opened], "masked_bits", (1, count), {"row": 0, "start": 0})
                self.carries[x, rounded, offset % (1 << rounded)] = carry
            apart = len(groups(apart)) if apart > 1 else 0
            digits = len(groups(*layer_of(attrs)))
            bits = self._add(node, "combine", [opened, bits], "bits", (leaf_planes(digits), count), attrs)
        return bits

    def _carry(self, node: Node) -> int:
        """The masked carry of a truncation: from a comparison of the same value, or another truncation, where it can be."""
        x, bits, offset = self.masked(node.args[0]), node.attrs["bits"], node.attrs["offset"]
        for sign in self.selecting.get(node.id, ()):
            self.bit(sign)
        if (x, bits, offset) not in self.carries and (zeros := self._zeros(node)):
            inner, most = self.masked(self.old[node.args[0]].args[0]), bits - zeros
            carry = self._compared(node, inner, -(-most % DIGIT_BITS), most + -most % DIGIT_BITS, 0, offset >> zeros)
            shape = (1, words(numel(node.shape)))
            self.carries[x, bits, offset] = self._add(node, "mask_bits", [carry], "masked_bits", shape)
        if (x, bits, offset) not in self.carries:
            alike = [b for b, o in self.rounded[node.args[0]] if o == offset and (b - bits) % DIGIT_BITS == 0]
            less, most = min(alike), max(alike)
            short, shape = -most % DIGIT_BITS, (1, words(numel(node.shape)))
            carry = self._compared(node, x, -short, most + short, less if less < most else 0, offset)
            self.carries[x, most, offset] = self._add(node, "mask_bits", [carry], "masked_bits", shape)
        return self.carries[x, bits, offset]

    def _zeros(self, node: Node) -> int:
        """How many of the bits that a truncation cuts off are zero, where it is the only one of a masked value times 2^n."""
        x, bits, offset = self.old[node.args[0]], node.attrs["bits"], node.attrs["offset"]
        zeros = shifted_bits(x)
        alone = x.id in self.free and self.rounded[x.id] == [(bits, offset)]
        fits = 0 < zeros < bits and offset % (1 << zeros) == 0
        return zeros if alone and fits and x.attrs["attrs"]["factor"] == 1 << zeros else 0

    def _rounding(self, node: Node) -> list[int]:
        """The operand that makes a truncation exact; none where it is not to be."""
        return [self._carry(node)] if "offset" in node.attrs else []

    def share(self, node: Node) -> int:
        if node.owner == PUBLIC:
            return self._add(node, "public_additive", [self._encode(node)], "additive")
        at = self.floats[node.attrs["float"]]
        return self._add(node, "own", [at], "additive", owner=node.owner, phase=node.phase)

    def of_shares(self, node: Node) -> int:
        """The operator as it stands, of additive operands."""
        return self._add(node, node.op, [self.additive(a) for a in node.args], "additive", attrs=node.attrs)

    def bilinear(self, node: Node) -> int:
        x, y = node.args
        if node.id in self.fused:
            return self._multiply_truncated(node, self.old[self.fused[node.id]])
        if _is_public(self.old, y):
            return self._public_product(node, self.additive(x), self._encode(self.old[y]), False)
        if _is_public(self.old, x):
            return self._public_product(node, self.additive(y), self._encode(self.old[x]), True)
        return self.of_masked(node)

    def _multiply_truncated(self, node: Node, truncation: Node) -> int:
        (other,) = _others(node, self.fused)
        args = [self.masked(other), self.masked(truncation.args[0]), *self._rounding(truncation)]
        return self._add(node, "multiply_truncated", args, "additive", attrs=truncation.attrs)

    def owned_layer(self, node: Node) -> int:
        x, y = node.args
        weights = self.floats[self.old[y].attrs["float"]]
        attrs = {**node.attrs, "weight_frac": self.old[y].frac}
        return self._add(node, "owned_layer", [self.masked(x), weights], "additive", attrs=attrs, owner=node.owner)

    def _public_product(self, node: Node, secret: int, public: int, swapped: bool) -> int:
        attrs = {**node.attrs, "swapped": swapped}
        return self._add(node, "bilinear_public", [secret, public], "additive", attrs=attrs)

    def of_masked(self, node: Node) -> int:
        """The operator as it stands, of masked operands."""
        return self._add(node, node.op, [self.masked(a) for a in node.args], "additive", attrs=node.attrs)

    def truncate(self, node: Node) -> int:
        args = [self.masked(node.args[0]), *self._rounding(node)]
        return self._add(node, "truncate", args, "additive", attrs=node.attrs)

    def select(self, node: Node) -> int:
        x, operand = _selected(self.old, node), self.old[node.args[1]]
        args = [self.bit(node.args[0]), self.masked(x.id)]
        if operand.op != "truncate":
            return self._add(node, "select", args, "additive", attrs=node.attrs)
        args += self._rounding(operand)
        return self._add(node, "select_truncated", args, "additive", attrs={**node.attrs, **operand.attrs})

    def window(self, node: Node) -> int:
        """Bits of a masked value: masked by those of its mask, of which nobody has a share."""
        return self._add(node, "window", [self.masked(node.args[0])], "window", attrs=node.attrs)

    def beyond(self, node: Node) -> int:
        """Whether what a comparison reads is beyond the bits that it sees."""
        x, sign = node.args
        args = [self.masked(x), self.bit(sign)]
        return self._add(node, "beyond", args, "additive", attrs={**node.attrs, **self.seen[sign]})

    def lookup(self, node: Node) -> int:
        op = "lookup" if self.parties == 2 else "lookup_shared"
        return self._add(node, op, [self.masked(a) for a in node.args], "additive", attrs=node.attrs)

    def positions(self, node: Node) -> int:
        at = self.floats[node.attrs["float"]]
        attrs = {"size": node.attrs["size"], "width": position_width(node.attrs["size"])}
        return self._add(node, "positions", [at], "order", attrs=attrs, owner=node.owner, phase=node.phase)

    def permute(self, node: Node) -> int:
        positions, x = node.args
        return self._add(node, "permute", [self.additive(positions), self.masked(x)], "additive")

    def spline(self, node: Node) -> int:
        *coefficients, t, lookup = node.args
        signed = self.parties == 2
        args = [*map(self.masked, coefficients), self.masked(t), *([self.additive(lookup)] if signed else [])]
        rest = {name: value for name, value in node.attrs.items() if name != "step_bits"}
        return self._add(node, "spline", args, "additive", attrs={"signed": signed, "frac": node.frac, **rest})

    def bit_to_ring(self, node: Node) -> int:
        return self._add(node, "bit_to_ring", [self.bit(node.args[0])], "additive", attrs=node.attrs)

    def keep(self, node: Node) -> int:
        phase: Phase = "load" if node.attrs["start"] else "run"
        return self._add(node, "keep", [self.additive(node.args[0])], "additive", attrs=node.attrs, phase=phase)

    def reveal(self, node: Node) -> int:
        args = [self.additive(node.args[0])]
        return self._add(node, "reveal", args, "float", attrs=node.attrs, owner=node.owner)


def _of_opening(mark: Mark) -> bool:
    """Whether a mark is about what gates see of a value."""
    return mark.name in (COMPARED, MEASURED) or is_width(mark)


Reads = Callable[[Graph, Node], tuple[int, ...]]
_NONE: Reads = lambda graph, node: ()
_ALL: Reads = lambda graph, node: node.args
_FIRST: Reads = lambda graph, node: node.args[:1]


def _factors(graph: Graph, node: Node) -> tuple[int, ...]:
    """A product with a public number is a share's own."""
    return () if any(_is_public(graph, a) for a in node.args) else node.args


@dataclass(frozen=True)
class _Rule:
    """How an operator is made of its operands' forms, and which of them it reads masked."""

    make: Callable[[_Pass, Node], int]
    reads_masked: Reads = _NONE


RULES = {
    "share": _Rule(_Pass.share),
    "client_input": _Rule(_Pass.of_shares),
    "client_output": _Rule(_Pass.of_shares),
    "state": _Rule(_Pass.of_shares),
    "keep": _Rule(_Pass.keep),
    "reveal": _Rule(_Pass.reveal),
    "linear": _Rule(_Pass.of_shares),
    "bilinear": _Rule(_Pass.bilinear, _factors),
    "owned_layer": _Rule(_Pass.owned_layer, _FIRST),
    "square": _Rule(_Pass.of_masked, _ALL),
    "beyond": _Rule(_Pass.beyond, _FIRST),
    "truncate": _Rule(_Pass.truncate, _ALL),
    "window": _Rule(_Pass.window, _ALL),
    "lookup": _Rule(_Pass.lookup, _ALL),
    "unit": _Rule(_Pass.of_masked, _ALL),
    "positions": _Rule(_Pass.positions),
    "permute": _Rule(_Pass.permute, lambda graph, node: node.args[1:]),
    "spline": _Rule(_Pass.spline, lambda graph, node: node.args[:-1]),
    "select": _Rule(_Pass.select, lambda graph, node: (_selected(graph, node).id,)),
    "bit_to_ring": _Rule(_Pass.bit_to_ring),
    "is_negative": _Rule(_Pass.is_negative, _ALL),
    "either": _Rule(_Pass.either),
    "all_of": _Rule(_Pass.all_of),
}
"""The operators of a graph whose truncations are placed. The three last ones make bits, the others additive values."""


def place_masks(
    graph: Graph,
    floats: Graph,
    float_ids: dict[int, int],
    parties: int,
    contributors: Sequence[str] = (),
    serves: bool = False,
) -> Graph:
    """The runnable graph: `floats` (already in place) followed by nodes of known form. `serves`: see Header."""
    fused = _truncated_factors(graph)
    needed, free = choose_masked(graph, contributors, fused)
    live = _live(graph, fused)
    masks = _Pass(graph, floats, float_ids, needed, free, parties, serves, fused, *_roundings(graph, live, fused))
    for node in (n for n in graph.nodes if n.id in live):  # operands first: else a deep model is a deep recursion
        form = masks.bit if node.form == "bit" else masks.masked if node.id in needed else masks.additive
        form(node.id)
    masks.keep_marks()
    return masks.new


def narrow_masks(graph: Graph) -> None:
    """Opens only the low bits of a value that are read (in whole bytes): by comparisons, or of small whole numbers. No more
    than these are dealt for a gate, whose sums and products are right in them.
    """
    for node, width in zip(graph.nodes, opened_widths(graph), strict=True):
        if node.op in NARROWED:
            node.attrs = narrowed(node, width)
