"""Kernels are chosen by device: packages with equal signatures, one place that chooses, nothing in between."""

import ast
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from protocols import kernels
from protocols.kernels import cpu, dispatch, twins, variant
from protocols.kernels.cpu import build

COMPOSED = {"conv1d", "conv_transpose1d", "conv_transpose2d"}
"""Called like a kernel, but made of `conv2d`."""
CALLED = {name for name, f in vars(dispatch).items() if inspect.isfunction(f)} - COMPOSED


def shape_of(function) -> list[tuple]:
    """Names, kinds and types of a function's parameters, and what it returns."""
    signature = inspect.signature(function)
    parameters = [(p.name, p.kind, p.annotation) for p in signature.parameters.values()]
    return [*parameters, ("returns", None, signature.return_annotation)]


def defaults(function) -> list:
    return [p.default for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("package", [cpu, twins], ids=["cpu", "twins"])
def test_every_package_has_every_kernel_and_no_other(package):
    assert len(package.__all__) == len(set(package.__all__)) > 15
    assert set(package.__all__) == CALLED
    assert all(inspect.isfunction(getattr(package, name)) for name in package.__all__)


@pytest.mark.parametrize("name", sorted(CALLED))
def test_a_kernel_and_its_twin_have_equal_signatures(name):
    kernel, twin = getattr(cpu, name), getattr(twins, name)
    assert shape_of(kernel) == shape_of(twin) and defaults(kernel) == defaults(twin)
    called = [parameter for parameter, *_ in shape_of(getattr(kernels, name))]
    assert called == [parameter for parameter, *_ in shape_of(twin)]


def test_every_kernel_is_public():
    assert CALLED | COMPOSED <= set(kernels.__all__)
    assert all(getattr(kernels, name) is getattr(dispatch, name) for name in CALLED | COMPOSED)


def test_a_device_without_kernels_of_its_own_has_the_twins():
    assert variant.kernels_for(torch.empty(1, device="meta")) is twins
    with kernels.use("twins"):
        assert variant.kernels_for(torch.empty(1)) is twins
    for name in kernels.info()["available"][1:]:
        with kernels.use(name):
            assert variant.kernels_for(torch.empty(1)) is cpu
            assert variant.kernels_for(torch.empty(1, device="meta")) is twins


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux alone")
def test_gpus_have_kernels_in_triton(monkeypatch):
    there = SimpleNamespace(device=torch.device("cuda:0"), is_cpu=False)
    assert variant.kernels_for(there).__name__ == "protocols.kernels.gpu"
    with kernels.use("twins"):
        assert variant.kernels_for(there) is twins
    variant._of_gpus.cache_clear()
    monkeypatch.setitem(sys.modules, "protocols.kernels.gpu", None)
    monkeypatch.delattr(kernels, "gpu", raising=False)
    assert variant.kernels_for(there) is twins
    variant._of_gpus.cache_clear()


RING, META = torch.zeros(64, dtype=torch.int64), torch.zeros(64, dtype=torch.int64, device="meta")
SHORT = RING.to(torch.int16)
MIXED = {
    "matmul": (RING.view(8, 8), META.view(8, 8)),
    "conv2d": (RING.view(1, 1, 8, 8), META.view(1, 1, 8, 8)),
    "leaves": (RING, META.to(torch.int16), 4),
    "combine": (RING[:2].view(2, 1), META[:2].view(2, 1), RING[:1].view(1, 1), RING[:1], 2, False, True),
    "truncate": (RING, META, SHORT, 16, True),
    "bit_times": (RING[:1], META, 64),
    "select": (RING[:1], RING, META, RING, RING, True),
    "select_truncated": (META[:1], RING, RING, SHORT, RING, RING, SHORT, 16, True),
    "bit_to_ring": (META[:1], RING, True),
    "unit_lookup": (RING, RING, META.view(1, 64)),
}


@pytest.mark.parametrize("name", MIXED)
def test_operands_on_two_devices_are_refused_before_memory_is_touched(name):
    with pytest.raises(ValueError, match="on one device, not on"):
        getattr(kernels, name)(*MIXED[name])


@pytest.mark.parametrize("first", [2, -1])
def test_a_part_of_a_public_term_is_refused(first):
    with pytest.raises(ValueError, match="once or not at all"):
        kernels.truncate(RING, RING, SHORT, 16, first)
    with pytest.raises(ValueError, match="once or not at all"):
        kernels.bit_to_ring(RING[:1], RING, first)


def test_a_build_of_other_sources_is_left_out_and_named(monkeypatch):
    name = next(reversed(build.builds), None)
    if name is None:
        pytest.skip("no kernels are built here")
    assert build._load(name) is build.builds[name]
    monkeypatch.setattr(build, "INTERFACE", build.INTERFACE + 1)
    with pytest.warns(UserWarning, match=f"_native_{name} are those of other sources(.|\n)*build them again"):
        assert build._load(name) is None


def test_nothing_else_asks_which_kernels_run():
    """Only `variant` knows which package runs; only `cpu` and those without a twin in torch know the build."""
    folder = Path(kernels.__file__).parent
    asking = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and node.id in ("kernels_for", "build"):
                asking.add((node.id, path.relative_to(folder).parts[0]))
    assert asking == {
        ("kernels_for", "dispatch"),
        ("build", "variant.py"),
        ("build", "residues.py"),
        ("build", "curve25519.py"),
        ("build", "bins.py"),
        ("build", "cpu"),
    }
