"""Imports point down only, lazy ones and those for types too: protocols know no model, nothing goes in circles."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocols", "securemodel")

ORDER = (
    ("securemodel.edge", "securemodel.page"),
    ("protocols",),
    (
        "securemodel.errors",
        "securemodel.shown",
        "securemodel.version",
        "securemodel.invocation",
        "securemodel.scripts",
        "securemodel.sequences",
    ),
    ("securemodel.files",),
    ("securemodel.compiler",),
    ("securemodel.models",),
    ("securemodel.program",),
    ("securemodel.ledger",),
    ("securemodel.engines",),
    ("securemodel.sessions",),
    ("securemodel.planning",),
    ("securemodel.inspect",),
    ("securemodel.training",),
    ("securemodel.family",),
    ("securemodel.api",),
    ("securemodel.data",),
    ("securemodel.service",),
    ("securemodel.federated",),
    ("securemodel",),
    ("securemodel.cli",),
    ("benchmarks", "examples", "tests"),
)
"""From the bottom up: what each may import of the others lies below it. Files, compiler and command are apart, too."""

FORBIDDEN = {
    "protocols.kernels": (
        "protocols.channel", "protocols.gates", "protocols.prg", "protocols.shares", "protocols.paillier",
    ),
    "protocols.paillier": ("protocols.channel", "protocols.gates", "protocols.correlations", "protocols.identity"),
    "protocols.gates": ("protocols.channel", "protocols.prg", "protocols.correlations", "protocols.identity"),
    "protocols.channel": ("protocols.gates", "protocols.correlations", "protocols.shares"),
    "securemodel.compiler": (
        "socket", "ssl", "asyncio", "securemodel.files",
        "protocols.channel.base", "protocols.channel.connecting", "protocols.channel.link", "protocols.channel.local",
        "protocols.channel.tcp", "protocols.channel.tls", "protocols.identity", "protocols.prg",
    ),
    "securemodel.engines.masked": ("securemodel.engines.crypten", "securemodel.engines.paillier"),
    "securemodel.engines.paillier": ("securemodel.engines.crypten",),
    "securemodel.engines.crypten": ("securemodel.engines.paillier", "securemodel.engines.masked.dealer"),
    "securemodel": ("onnx",),
}  # fmt: skip
"""For a package, what none of its modules may import besides, anywhere in the file."""

COMPILER_MAY_USE = {"HEADER_BYTES", "Label", "Purpose"}
"""What the compiler takes from protocols.channel: sizes and names of messages."""

EVERYWHERE = ("pickle", "random", "marshal", "shelve")


@cache
def modules() -> dict[str, Path]:
    """All modules of the two packages, by name."""
    out = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def imports(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """Names of the modules a file imports, at its top, in functions, or for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


@cache
def graph() -> dict[str, set[str]]:
    """Which modules each module imports."""
    known = modules()
    return {name: set(imports(ast.parse(path.read_text()), set(known))) for name, path in known.items()}


def level(name: str) -> int:
    """How high in ORDER a module is: where the longest name that it is inside of stands; -1 for other people's."""
    found = [(len(top), at) for at, tops in enumerate(ORDER) for top in tops if inside(name, top)]
    return max(found, default=(0, -1))[1]


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Imports against the order."""
    return [
        f"{name} imports {target}"
        for name, targets in sorted(edges.items())
        for target in sorted(targets)
        if level(target) > level(name)
    ]


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations(edges: dict[str, set[str]], package: str, banned: tuple[str, ...]) -> list[str]:
    return [
        f"{name} imports {target}"
        for name, targets in sorted(edges.items())
        if inside(name, package)
        for target in sorted(targets)
        if any(inside(target, b) for b in banned)
    ]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle, or nothing."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in sorted(edges.get(name, ())):
                if found := search(target, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := search(name, []))), [])


def test_imports_point_down():
    assert not upward(graph())


def test_every_module_has_a_place():
    named = {top for tops in ORDER for top in tops}
    parts = {".".join(name.split(".")[:2]) for name in modules() if name.startswith("securemodel.")}
    assert parts <= named


def test_modules_are_imported_by_name_only():
    """Else these tests would not see it. Exceptions: kernels that may be missing, CrypTen, and what is loaded when it is
    asked for, which stands in imports for types as well."""
    found = {name for name, path in modules().items() if "import_module" in path.read_text()}
    when_asked_for = {"protocols.channel", "securemodel", "securemodel.cli.app"}
    assert found <= {"protocols.kernels.cpu.build", "securemodel.engines.crypten.adapter", *when_asked_for}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_what_stays_apart(package):
    assert not violations(graph(), package, FORBIDDEN[package])


def test_the_compiler_takes_only_sizes_from_channels():
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if inside(name, "securemodel.compiler") and isinstance(node, ast.ImportFrom):
                taken = {alias.name for alias in node.names} if node.module == "protocols.channel" else set()
                assert taken <= COMPILER_MAY_USE, f"{name} line {node.lineno}"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_unpickles_and_no_weak_randomness(package):
    assert not violations(graph(), package, EVERYWHERE)


def test_only_the_module_for_it_imports_phe():
    """It is under the GPL: nothing else may depend on it."""
    found = {name for name, targets in graph().items() if any(inside(target, "phe") for target in targets)}
    assert found == {"protocols.paillier.phe_interop"}


def test_no_module_imports_itself_in_a_circle():
    assert not circle(graph())


def test_these_tests_notice():
    edges = {"protocols.a": {"securemodel.x"}, "securemodel.x": {"protocols.b"}, "protocols.b": {"protocols.a"}}
    assert violations(edges, "protocols", ("securemodel",)) == ["protocols.a imports securemodel.x"]
    assert circle(edges)[0] == circle(edges)[-1] and len(circle(edges)) == 4
    assert upward({"securemodel.program": {"securemodel.api", "securemodel.compiler.ir", "torch"}}) == [
        "securemodel.program imports securemodel.api"
    ]
    tree = ast.parse("import os\nif TYPE_CHECKING:\n    import a\ndef f():\n    import b\nclass C:\n    import c\n")
    assert set(imports(tree, set())) == {"os", "a", "b", "c"}
    assert len(modules()) > 40 and sum(map(len, graph().values())) > 100
