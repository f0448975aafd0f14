"""Imports point down only: protocols know no model, the compiler knows no network, nothing goes in circles."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocols", "securemodel")

FORBIDDEN = {
    "protocols": ("securemodel", "benchmarks", "examples", "tests"),
    "protocols.kernels": (
        "protocols.channel", "protocols.gates", "protocols.prg", "protocols.shares", "protocols.paillier",
    ),
    "protocols.paillier": ("protocols.channel", "protocols.gates", "protocols.correlations", "protocols.identity"),
    "protocols.gates": ("protocols.channel", "protocols.prg", "protocols.correlations", "protocols.identity"),
    "protocols.channel": ("protocols.gates", "protocols.correlations", "protocols.shares"),
    "securemodel": ("benchmarks", "examples", "tests"),
    "securemodel.compiler": (
        "socket", "ssl", "asyncio", "securemodel.runtime", "securemodel.cli", "securemodel.serving",
        "securemodel.backends.crypten", "securemodel.backends.paillier",
        "protocols.channel.base", "protocols.channel.connect", "protocols.channel.link", "protocols.channel.local",
        "protocols.channel.tcp", "protocols.channel.tls", "protocols.identity", "protocols.prg",
    ),
    "securemodel.runtime": (
        "securemodel.cli", "securemodel.serving", "securemodel.backends.crypten", "securemodel.backends.paillier",
    ),
    "securemodel.backends": ("securemodel.cli", "securemodel.serving", "crypten", "onnx"),
}  # fmt: skip
"""For a package, what none of its modules may import, anywhere in the file."""

COMPILER_MAY_USE = {"HEADER_BYTES", "Label", "Purpose"}
"""What the compiler takes from protocols.channel: sizes and names of messages."""

EVERYWHERE = ("pickle", "random", "marshal", "shelve")


def modules() -> dict[str, Path]:
    """All modules of the two packages, by name."""
    out = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def imports(tree: ast.AST, known: set[str], when: str = "ever") -> Iterator[str]:
    """Names of modules a file imports; when="loading": only what runs while the file itself is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module
        elif when == "loading" and (isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _for_types(node)):
            continue
        else:
            yield from imports(node, known, when)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def graph(when: str) -> dict[str, set[str]]:
    """Which modules each module imports, of all there are."""
    known = modules()
    return {name: set(imports(ast.parse(path.read_text()), set(known), when)) for name, path in known.items()}


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


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_down(package):
    assert not violations(graph("ever"), package, FORBIDDEN[package])


def test_the_compiler_takes_only_sizes_from_channels():
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if inside(name, "securemodel.compiler") and isinstance(node, ast.ImportFrom):
                taken = {alias.name for alias in node.names} if node.module == "protocols.channel" else set()
                assert taken <= COMPILER_MAY_USE, f"{name} line {node.lineno}"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_unpickles_and_no_weak_randomness(package):
    assert not violations(graph("ever"), package, EVERYWHERE)


def test_only_the_module_for_it_imports_phe():
    """It is under the GPL: nothing else may depend on it."""
    found = {name for name, targets in graph("ever").items() if any(inside(target, "phe") for target in targets)}
    assert found == {"protocols.paillier.phe_interop"}


def test_no_module_imports_itself_in_a_circle():
    assert not circle(graph("loading"))


def test_these_tests_notice():
    edges = {"protocols.a": {"securemodel.x"}, "securemodel.x": {"protocols.b"}, "protocols.b": {"protocols.a"}}
    assert violations(edges, "protocols", ("securemodel",)) == ["protocols.a imports securemodel.x"]
    assert circle(edges)[0] == circle(edges)[-1] and len(circle(edges)) == 4
    tree = ast.parse("import os\nif TYPE_CHECKING:\n    import a\ndef f():\n    import b\nclass C:\n    import c\n")
    assert set(imports(tree, set(), "loading")) == {"os", "c"}
    assert set(imports(tree, set())) == {"os", "a", "b", "c"}
    assert len(modules()) > 40 and sum(map(len, graph("ever").values())) > 100
