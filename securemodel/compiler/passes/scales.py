"""Gives every secret its number of fractional bits and places truncations where products need them.

A product of two values of f fractional bits has 2f. It stays so through sums, maxima and reveals; it is
truncated to f where the next product, square or activation reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from securemodel.compiler.ir import Graph, Node


@dataclass
class _Scaled:
    """A value with its fractional bits."""

    id: int
    frac: int


@dataclass
class _Pass:
    old: Graph
    frac_bits: int
    width: int
    run_floats: set[int]
    new: Graph = field(default_factory=Graph)
    env: dict[int, _Scaled] = field(default_factory=dict)
    shares: dict[tuple[int, int], int] = field(default_factory=dict)
    truncated: dict[int, int] = field(default_factory=dict)

    def _add(self, like: Node, op: str, args, shape, form="secret", frac=None, **attrs) -> int:
        return self.new.add(op, args, shape, form, frac=frac, attrs=attrs, source=like.source).id

    def natural(self, node_id: int) -> int:
        """The fractional bits an operand has, or would be given as a float."""
        node = self.old[node_id]
        if node.form == "float":
            return 0 if node.attrs.get("integer") else self.frac_bits
        return self.env[node_id].frac

    def at(self, node_id: int, frac: int) -> int:
        """The value with exactly `frac` fractional bits (never fewer than it has)."""
        node = self.old[node_id]
        if node.form == "float":
            return self.share(node, frac)
        have = self.env[node_id]
        if have.frac == frac:
            return have.id
        factor = {"kind": "scale", "attrs": {"factor": 2 ** (frac - have.frac)}}
        return self._add(node, "linear", [have.id], node.shape, frac=frac, **factor)

    def share(self, node: Node, frac: int) -> int:
        """A float brought into the ring."""
        if (node.id, frac) not in self.shares:
            made = self._add(node, "share", (), node.shape, frac=frac, float=node.id)
            self.new[made].owner = node.owner
            self.new[made].load = node.id not in self.run_floats
            self.shares[node.id, frac] = made
        return self.shares[node.id, frac]

    def reduced(self, node_id: int) -> _Scaled:
        """The value with at most frac_bits fractional bits."""
        node = self.old[node_id]
        if node.form == "float":
            frac = self.natural(node_id)
            return _Scaled(self.share(node, frac), frac)
        have = self.env[node_id]
        if have.frac <= self.frac_bits:
            return have
        key = have.id * 1024 + have.frac
        if key not in self.truncated:
            bits = have.frac - self.frac_bits
            self.truncated[key] = self._add(node, "truncate", [have.id], node.shape, frac=self.frac_bits, bits=bits)
        return _Scaled(self.truncated[key], self.frac_bits)

    def visit(self, node: Node) -> _Scaled:
        made = getattr(self, f"_visit_{node.op}")(node)
        return made

    def _visit_linear(self, node: Node) -> _Scaled:
        frac = max(self.natural(a) for a in node.args)
        args = [self.at(a, frac) for a in node.args]
        return _Scaled(self._add(node, "linear", args, node.shape, frac=frac, **node.attrs), frac)

    def _visit_bilinear(self, node: Node) -> _Scaled:
        x, y = (self.reduced(a) for a in node.args)
        made = self._add(node, "bilinear", [x.id, y.id], node.shape, frac=x.frac + y.frac, **node.attrs)
        return _Scaled(made, x.frac + y.frac)

    def _visit_square(self, node: Node) -> _Scaled:
        x = self.reduced(node.args[0])
        return _Scaled(self._add(node, "square", [x.id], node.shape, frac=2 * x.frac), 2 * x.frac)

    def _visit_rescale(self, node: Node) -> _Scaled:
        return self.reduced(node.args[0])

    def _visit_ldexp(self, node: Node) -> _Scaled:
        x = self.reduced(node.args[0])
        have = self.env.get(node.args[0], x)
        if have.frac + node.attrs["bits"] <= 2 * self.frac_bits:
            x = have
        return _Scaled(x.id, x.frac + node.attrs["bits"])

    def _visit_index(self, node: Node) -> _Scaled:
        bits = self.frac_bits - node.attrs["step_bits"]
        args = [self.exactly(node.args[0])]
        return _Scaled(self._add(node, "truncate", args, node.shape, frac=0, bits=bits), 0)

    def _visit_lookup(self, node: Node) -> _Scaled:
        index = self.env[node.args[0]].id
        return _Scaled(self._add(node, "lookup", [index], node.shape, frac=0, **node.attrs), 0)

    def _visit_spline(self, node: Node) -> _Scaled:
        terms = self.old[node.args[0]].shape[0]
        args = [self.env[node.args[0]].id, self.exactly(node.args[1])]
        frac = terms * self.frac_bits
        return _Scaled(self._add(node, "spline", args, node.shape, frac=frac), frac)

    def exactly(self, node_id: int) -> int:
        """The value with exactly frac_bits fractional bits."""
        value = self.reduced(node_id)
        if value.frac == self.frac_bits:
            return value.id
        return self.at(node_id, self.frac_bits)

    def _visit_is_negative(self, node: Node) -> _Scaled:
        frac = self.natural(node.args[0])
        shift = max(0, frac - self.frac_bits)
        low_bits = min(self.width, 64 - shift) - 1
        args = [self.at(node.args[0], frac)]
        return _Scaled(self._add(node, "is_negative", args, node.shape, "bit", shift=shift, low_bits=low_bits), 0)

    def _visit_select(self, node: Node) -> _Scaled:
        bit, x = self.env[node.args[0]], node.args[1]
        frac = self.natural(x)
        made = self._add(node, "select", [bit.id, self.at(x, frac)], node.shape, frac=frac, **node.attrs)
        return _Scaled(made, frac)

    def _visit_bit_to_ring(self, node: Node) -> _Scaled:
        args = [self.env[node.args[0]].id]
        rest = {"frac": 0, "attrs": node.attrs, "source": node.source}
        return _Scaled(self.new.add("bit_to_ring", args, node.shape, "secret", **rest).id, 0)


def place_truncations(
    graph: Graph, outputs: list[int], receivers: list[str], replaced: dict[int, int], frac_bits: int, width: int
) -> Graph:
    """A graph of secrets with known fractional bits, `share` nodes for floats and `reveal` nodes for outputs."""
    run_floats = set()
    for node in graph.nodes:
        if node.form == "float" and (
            node.attrs.get("name", "").startswith("input:") or any(a in run_floats for a in node.args)
        ):
            run_floats.add(node.id)
    scales = _Pass(graph, frac_bits, width, run_floats)
    for node in graph.nodes:
        if node.id in replaced:
            scales.env[node.id] = scales.env[replaced[node.id]]
        elif node.form != "float":
            scales.env[node.id] = scales.visit(node)
        if node.marks and node.form != "float":
            made = scales.env[node.id]
            scales.new[made.id].marks += tuple(replace(mark, frac=made.frac) for mark in node.marks)
    for index, (output, to) in enumerate(zip(outputs, receivers, strict=True)):
        node = graph[output]
        frac = scales.natural(output)
        value = scales.at(output, frac)
        made = scales._add(node, "reveal", [value], node.shape, "float", frac, index=index)
        scales.new[made].owner = to
    return scales.new
