"""Kernels are chosen by device: packages with equal signatures, one place that chooses, nothing in between."""

import ast
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from protocols import kernels
from protocols.kernels import Piece, cpu, dispatch, twins, variant
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


# ---- no elements at all
NONE, NO_SHORT, BITS_OF_NONE = RING[:0], SHORT[:0], torch.zeros(0, 1, dtype=torch.int64)
COEFFICIENTS, GROUPS = RING.new_zeros(3, 16 * 64), ((0, 4), (4, 2), (6, 1))
OF_NONE = {
    "bit_times": (NONE, NONE, 0),
    "bit_to_ring": (NONE, NONE, 1),
    "chacha20": (NONE, bytes(32), bytes(12), "add", 3),
    "chacha20_many": ([NONE, NO_SHORT], bytes(32), bytes(24), ["set", "add"]),
    "combine": (*(RING.view(-1, 1)[:count, :0] for count in (3, 3, 2)), NONE, 2, True, 1),
    "combine_layer": (*(RING.view(-1, 1)[:count, :0] for count in (9, 9, 17, 13)), GROUPS, 1),
    "deal_spline": ([NONE] * 3, NONE, NONE, (0, 1, 2), 5, 7),
    "deal_truncation": (NONE, 16),
    "decode": (NONE, 16),
    "encode": (NONE.double(), 16),
    "hide": ([None, NONE, RING.view(-1, 1)[:, :0]], [NONE, NONE, NONE.view(2, 0)],
             [Piece(5), Piece(8, True), Piece(8, True, (1, 4))]),
    "join": ([NONE, NONE], NONE.to(torch.uint8), [Piece(5), Piece(8, True)]),
    "leaves": (NONE, NO_SHORT.view(16, 0), 63, 0, 9),
    "lookup_around": (NONE, BITS_OF_NONE, COEFFICIENTS, 13, (13, 1, 4)),
    "matmul": (NONE.view(0, 3), RING[:6].view(3, 2)),
    "monomials": (RING.view(-1, 1)[:3, :0], 2, True),
    "monomials_layer": (RING.view(-1, 1)[:9, :0], GROUPS),
    "msb_plane": (NONE, 63, 9),
    "narrow": ([NONE], [5]),
    "pack_bits": (NONE.bool(),),
    "select": (NONE, NONE, None, NONE, NONE, 1),
    "select_truncated": (*[NONE] * 3, NO_SHORT, NONE, NONE, NO_SHORT, 16, 1, 1 << 15, NONE, NONE, NONE),
    "sign_product": (NONE.view(2, 0).int(), NONE.view(0, 3).to(torch.int8)),
    "spline": ([NONE] * 3, [None, NONE, NONE], NONE, (0, 1, 2), 1),
    "thermometer": (NONE, 63),
    "truncate": (NONE, NONE, NO_SHORT, 16, 1, 1 << 15, NONE, NONE),
    "unit_lookup": (NONE, BITS_OF_NONE, RING.view(1, 64)),
    "unit_vectors": (NONE, 64),
    "unpack_bits": (NONE, 0),
    "weighted_around": (NONE, NONE.view(0, 64), COEFFICIENTS, 13, (13, 1, 4)),
    "widen": ([NONE.to(torch.uint8)], [5], [(3, 0)]),
}  # fmt: skip


def sizes_of(made) -> list:
    """Shapes and types of what a kernel gives."""
    each = made if isinstance(made, (list, tuple)) else [made]
    return [sizes_of(x) if isinstance(x, (list, tuple)) else x if x is None else (x.shape, x.dtype) for x in each]


def test_every_kernel_takes_no_elements_but_convolutions():
    assert set(OF_NONE) == CALLED - {"conv2d"}
    with pytest.raises(ValueError, match="nothing to multiply"):
        kernels.conv2d(NONE.view(0, 1, 2, 2), RING[:1].view(1, 1, 1, 1))


@pytest.mark.parametrize("name", sorted(OF_NONE))
def test_of_no_elements_every_build_makes_what_its_twin_makes(name):
    found = {}
    for build_name in kernels.info()["available"]:
        with kernels.use(build_name):
            made = getattr(kernels, name)(*OF_NONE[name])
        if name == "hide":  # what is sent is these buffers together, however many
            made = made[0], torch.cat(made[1])
        found[build_name] = sizes_of(made)
        assert name == "sign_product" or not sum(x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor))
    assert all(sizes == found["twins"] for sizes in found.values()), found
