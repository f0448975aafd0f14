"""Reads a program's text, from whoever it comes: either every line of it is what the compiler might have written, or it
is a ProgramError."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from protocols.errors import explain
from protocols.names import EVERYBODY
from protocols.shares import RING_BITS
from protocols.strict import strict_json
from securemodel.compiler.ir import DEEP_KIND, MASKED_KIND, TEXT_VERSION, Graph, Header, Node, Tuned
from securemodel.compiler.ops import MAX_PROGRAM_BYTES, ROWS, Row, check_header, cut_operand, verify
from securemodel.compiler.owners import Weights
from securemodel.compiler.positions import TABLE
from securemodel.errors import ProgramError

MAX_TEXT_BYTES = 64 << 20
MAX_DEPTH = 32
MAX_FAMILY = 32
"""How many programs may share a load."""
_FIRST_LINE = re.compile(rf"^(?={MASKED_KIND} )", re.MULTILINE)
_LINE = re.compile(
    r"%(?P<id>[0-9]{1,9}) = (?P<op>\w{1,40})(?:@(?P<owner>[\w\-]{1,64}))?(?P<args>(?: %[0-9]{1,9})*)(?: (?P<attrs>\{.*\}))?"
    r" : (?P<form>\w{1,40})(?: f(?P<frac>-?[0-9]{1,9}))? \[(?P<shape>(?:[0-9]{1,19}(?:,|(?=\])))*)\](?P<load> load)?",
    re.ASCII,
)
_FIX = "write it with Program.save() of this version"


def parse_program(
    text: str,
    kinds: Sequence[str] = (MASKED_KIND, DEEP_KIND),
    rows: Mapping[str, Row] = ROWS,
    max_bytes: int = MAX_PROGRAM_BYTES,
) -> tuple[Header, Graph]:
    """Reads a program's text back, and checks every node of it (`verify`). Float nodes come back without their torch calls.

    `max_bytes` bounds the program's values with what is dealt for them. Raises ProgramError.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ProgramError(
            explain(f"a program's text has up to {MAX_TEXT_BYTES} letters, this one {len(text)}", fix=_FIX)
        )
    first, *lines = text.rstrip("\n").split("\n")
    prefix, number = next((p for kind in kinds if first.startswith(p := f"{kind} {TEXT_VERSION} ")), ""), 1
    if not prefix:
        what = f"this is not a {kinds[0]} of text version {TEXT_VERSION}"
        raise ProgramError(explain(what, where="line 1", why=f"it starts with {first[:40]!r}", fix=_FIX))
    graph = Graph()
    try:
        header = _header(_json(first[len(prefix) :]))
        check_header(header)
        for number, line in enumerate(lines, 2):
            node = parse_node(line)
            if node.id != number - 2 or any(arg >= node.id for arg in node.args):
                raise ValueError(f"ids must be in order: this is %{number - 2}, and reads earlier ones")
            graph.nodes.append(node)
    except (ValueError, TypeError) as problem:
        raise _damaged(f"line {number}", " ".join(str(problem).split())[:300]) from None
    verify(header, graph, max_bytes, rows)
    if header.guarded and (not header.outputs or header.outputs[-1] != EVERYBODY):
        raise _damaged("line 1", "a guard is the last output, to all")
    if header.tuned and (wrong := _unread(graph, header.tuned)):
        raise _damaged(
            "line 1", f"the measured range of %{wrong[0]}, {wrong[1]} bits, is that of nothing that looks at it"
        )
    for number, (line, node) in enumerate(zip(lines, graph.nodes, strict=True), 2):
        if node.text() != line:
            raise _damaged(f"line {number}", "it is written in another way than Program.save() writes it")
        if node.op == "placeholder" and node.owner in header.contributors and not node.attrs["name"].startswith(TABLE):
            raise _damaged(f"line {number}", f"{node.owner!r} is no party, and gives no input in a run")
    return header, graph


def parse_programs(text: str, max_bytes: int = MAX_PROGRAM_BYTES) -> list[tuple[Header, Graph]]:
    """Reads the texts of programs with the same load, one after the other (a family's), or of one. Raises ProgramError."""
    parts = [part for part in _FIRST_LINE.split(text) if part] or [text]
    if len(parts) > MAX_FAMILY:
        raise ProgramError(explain(f"these are {len(parts)} programs, and at most {MAX_FAMILY} share a load"))
    programs = [parse_program(part, max_bytes=max_bytes) for part in parts]
    (header, graph), *others = programs
    if any(other.parties != header.parties or load_of(each) != load_of(graph) for other, each in others):
        what, why = "these programs share no load", "their parties or what they load with the weights differ"
        raise ProgramError(explain(what, why=why, fix="give programs of one family (compile_service)"))
    return programs


def load_of(graph: Graph) -> list[str]:
    """The lines of what is computed when weights are loaded."""
    return [node.text() for node in graph.nodes if node.phase == "load"]


def read_text(path: Path) -> str:
    """The text of a file. Raises ProgramError where it is none, or too long for a program."""
    with path.open("rb") as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProgramError(explain("not a secure program: it is not even text", where=str(path), fix=_FIX)) from None


def _damaged(where: str, why: str) -> ProgramError:
    return ProgramError(explain("the program text is damaged", where=where, why=why, fix=_FIX))


def _json(text: str) -> Any:
    """A JSON value. Raises DecodeError."""
    return strict_json(text, "what is in braces", MAX_TEXT_BYTES, MAX_DEPTH)


def _header(fields: Any) -> Header:
    """The first line's fields, of the types they have. Raises TypeError."""
    stated = [name for name in Header.__dataclass_fields__ if name != "tuned"]
    if not isinstance(fields, dict) or set(fields) - {"tuned"} != set(stated):
        raise TypeError(f"a program states {', '.join(stated)}, and where it is tuned, how")
    return Header(
        parties=_names(fields["parties"]),
        frac_bits=fields["frac_bits"],
        width=fields["width"],
        weights=_weights(fields["weights"]),
        inputs=_names(fields["inputs"]),
        input_shapes=tuple(map(_sizes, _list(fields["input_shapes"]))),
        outputs=_names(fields["outputs"]),
        rounding=fields["rounding"],
        tuned=_tuned(fields["tuned"]) if "tuned" in fields else None,
    )


def _unread(graph: Graph, tuned: Tuned) -> tuple[int, int] | None:
    """A measured range that nothing takes for granted, if there is one."""
    seen: set[tuple[int, int]] = set()
    for node in graph.nodes:
        if node.op == "top_bit":
            seen.update(zip(node.args, node.attrs["bit"], strict=True))
        elif "modulo" in node.attrs:
            seen.add((node.args[cut_operand(node)], node.attrs["modulo"] - 2))
        elif node.op == "reveal" and "width" in node.attrs:
            seen.add((node.id, node.attrs["width"] - 1))
    return next((limit for limit in tuned.limits if limit not in seen), None)


def _tuned(field: Any) -> Tuned:
    """Measured ranges. Raises TypeError."""
    if not isinstance(field, dict) or set(field) != set(Tuned.__dataclass_fields__):
        raise TypeError(f"a tuned program states {', '.join(Tuned.__dataclass_fields__)}")
    if not isinstance(field["of"], str) or not re.fullmatch("[0-9a-f]{64}", field["of"]):
        raise TypeError("what a program was tuned for is a digest of 64 hexadecimal digits")
    if type(field["margin"]) is not float or not field["margin"] >= 1:
        raise TypeError(f"a margin is a factor of 1.0 or more, not {field['margin']!r:.100}")
    if type(field["settled"]) is not int or field["settled"] < 0:
        raise TypeError(f"{field['settled']!r:.100} comparisons cannot be left out")
    if type(field["tables"]) is not int or field["tables"] < 0:
        raise TypeError(f"{field['tables']!r:.100} tables cannot have fewer pieces")
    if type(field["guard"]) is not bool:
        raise TypeError(f"a program has a guard or not, and not {field['guard']!r:.100}")
    pairs = [_sizes(pair) for pair in _list(field["limits"])]
    if any(len(pair) != 2 or not 1 <= pair[1] < RING_BITS for pair in pairs):
        raise TypeError(f"measured ranges are pairs of a node and its bits, 1 to {RING_BITS - 1}")
    if any(a >= b for (a, _), (b, _) in pairwise(pairs)):
        raise TypeError("measured ranges are in the order of their nodes")
    return Tuned(
        field["of"],
        field["margin"],
        tuple((at, bits) for at, bits in pairs),
        field["settled"],
        field["tables"],
        field["guard"],
    )


def _list(field: Any) -> list[Any]:
    if not isinstance(field, list):
        raise TypeError(f"{field!r:.100} is no list")
    return field


def _names(field: Any) -> tuple[str, ...]:
    if not all(isinstance(name, str) for name in _list(field)):
        raise TypeError(f"{field!r:.100} are not names")
    return tuple(field)


def _sizes(field: Any) -> tuple[int, ...]:
    if not all(type(size) is int for size in _list(field)):
        raise TypeError(f"{field!r:.100} is no shape")
    return tuple(field)


def _weights(field: Any) -> Weights:
    """A name, or pairs of prefix and name."""
    if isinstance(field, str):
        return field
    pairs = [_names(pair) for pair in _list(field)]
    if any(len(pair) != 2 for pair in pairs):
        raise TypeError("the owners of weights are pairs of a prefix and a name")
    return tuple((prefix, owner) for prefix, owner in pairs)


def parse_node(line: str) -> Node:
    """Reads one line of `Node.text`. Raises ValueError or DecodeError on anything else."""
    match = _LINE.fullmatch(line)
    if not match:
        raise ValueError(f"not a line of a secure program: {line[:120]!r}")
    return Node(
        id=int(match["id"]),
        op=match["op"],
        args=tuple(int(a[1:]) for a in match["args"].split()),
        attrs=_json(match["attrs"]) if match["attrs"] else {},
        shape=tuple(int(s) for s in match["shape"].split(",") if s),
        form=match["form"],
        frac=int(match["frac"]) if match["frac"] else None,
        owner=match["owner"],
        phase="load" if match["load"] else "run",
    )
