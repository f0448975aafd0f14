"""Complex numbers and Fourier transforms of secrets against torch, and what of them is refused."""

from __future__ import annotations

import pytest
import torch
from running import IDLE_THIRD, TWO, run, tensors
from torch import nn

import securemodel
from securemodel import training
from securemodel.compiler.lower.fourier import MOST_POINTS, fourier_matrix
from securemodel.errors import InputError, UnsupportedOperator

SETTINGS = pytest.mark.parametrize("settings", [TWO, IDLE_THIRD], ids=["two", "three"])
UNIT = 2.0**-16
_ONES = torch.ones(4)


class OfWeight(nn.Module):
    """A function of an input plus a zero of the other party, and of its complex matrix."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.zero = function, nn.Parameter(torch.zeros(()))
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x + self.zero, self.weight)


def check(model: nn.Module, x: torch.Tensor, settings=TWO, tolerance: float = 2.0**-11) -> None:
    with torch.no_grad():
        right = tensors(model.eval()(x))
    made = run(securemodel.compile(model, x, **settings), x)
    for at, (m, r) in enumerate(zip(made, right, strict=True)):
        assert m.dtype == r.dtype and m.shape == r.shape
        assert (m - r).abs().max() <= tolerance, f"output {at} is off by {(m - r).abs().max():.2e}"


FUNCTIONS = {
    "product": lambda x, w: (x * w, (x * w) * (w * x), x * 2j, 1j * (x * w), (x * w) * 0.5),
    "matrix products": lambda x, w: ((x * w) @ w, w @ (x + 0j), torch.bmm((x * w)[None], w[None]), (x * w) @ w[0]),
    "linear": lambda x, w: (nn.functional.linear(x + 0j, w, w[0]), torch.addmm(w[0], x * w, w, beta=2j, alpha=0.5)),
    "einsum": lambda x, w: torch.einsum("bi,io->bo", x * w, w),
    "quotient": lambda x, w: ((x * w) / (w + 3), x / (x * w + 4), (x * w) / 2j, (x * w) / (x * x + 1)),
    "square": lambda x, w: ((x * w) ** 2, (x * w).square(), (x * w).abs(), 1 / (x * w + 4)),
    "sum": lambda x, w: ((x * w).sum(), (x * w).mean(0), (x * w).cumsum(1), torch.vdot((x * w)[0], w[0])),
    "real and complex": lambda x, w: (x * w + x, x - w, 1 - x * w, x * w + 2j, torch.cat([x * w, x + 0j])),
    "factors": lambda x, w: (
        torch.add(x * w, w, alpha=2j),
        torch.add(w, x, alpha=2j),
        torch.sub(x * w, x * w, alpha=0.5 - 1j),
        torch.rsub(x * w, w, alpha=1 + 2j),
    ),
    "parts": lambda x, w: ((x * w).real, (x * w).imag, (x * w).conj().imag, ((x * w).conj() * 2j).abs()),
    "made": lambda x, w: (torch.complex(x, x * 2), torch.complex(x, _ONES), torch.view_as_complex(x.view(4, 2, 2))),
    "polar": lambda x, w: (torch.polar(x, x * 3), torch.exp(1j * x), torch.exp(x * w / 4)),
    "powers": lambda x, w: (
        (x * w) ** 3,
        (w * x + 2) ** -2,
        (x * w) ** 0.5,
        (x * w) ** 0,
        (x * w).sqrt(),
        (x * w + 2).log(),
        (x * w + 2) ** 2j,
        (x * w).prod(-1),
        (x * w).prod(),
        (x * w).cumprod(0),
    ),
    "norms": lambda x, w: (
        (x * w).norm(dim=-1),
        (x * w).norm(),
        torch.linalg.vector_norm(x * w, 1, dim=0),
        (x * w).var(-1),
        (x * w).std(),
    ),
    "waves": lambda x, w: ((x * w).sin(), (x * w).cos(), (x * w).sinh(), (x * w).cosh(), ((x * w) / 4).tanh()),
    "compared": lambda x, w: (
        (x * w == w * x).float(),
        (x * w != w).float(),
        (torch.complex(x, x) == 2.0).float(),
        (x * w).sgn(),
    ),
    "convolutions": lambda x, w: (
        nn.functional.conv1d((x * w)[None], w[:, :, None], w[0]),
        torch.baddbmm(w[None], (x * w)[None], w[None], beta=2j),
        torch.addcmul(w, x * w, w, value=0.5),
        nn.functional.conv2d(x[None, None] + 0j, w[None, None]),
    ),
    "moved": lambda x, w: (
        (x * w).T,
        *(x * w).split(3, 1),
        (x * w).roll(1, 0).flip(1),
        torch.stack([x * w, w]),
        nn.functional.pad(x * w, (1, 2)),
        (x * w)[:, [1, 0]],
    ),
    "chosen": lambda x, w: (torch.where(x > 0, x * w, w), (x * w).masked_fill(x > 0, 1.0), (x * w).tril()),
    "written": lambda x, w: (torch.zeros(4, 4, dtype=torch.cfloat).index_put((torch.tensor([2]),), x[:1] * w[:1]),),
    "types": lambda x, w: (x.to(torch.cfloat), x.to(torch.complex128) * 1j, torch.zeros_like(x * w) + x),
    "of the owner": lambda x, w: torch.linalg.eigvals(w).real + x,
}


@SETTINGS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_complex_numbers(name, settings):
    check(OfWeight(FUNCTIONS[name]), torch.randn(4, 4, generator=torch.Generator().manual_seed(1)), settings)


TRANSFORMS = {
    "fft": lambda x, z: (torch.fft.fft(x), torch.fft.fft(z), torch.fft.fft(z, n=7, norm="ortho"), torch.fft.fft(z, 3)),
    "ifft": lambda x, z: (torch.fft.ifft(z), torch.fft.ifft(x, dim=0), torch.fft.ifft(z, norm="forward")),
    "rfft": lambda x, z: (torch.fft.rfft(x), torch.fft.rfft(x, 5, 0), torch.fft.rfft(x, norm="ortho")),
    "irfft": lambda x, z: (torch.fft.irfft(z), torch.fft.irfft(z, 5), torch.fft.irfft(z, 9, 0), torch.fft.irfft(x)),
    "two axes": lambda x, z: (torch.fft.fft2(x), torch.fft.ifft2(z), torch.fft.rfft2(x), torch.fft.irfft2(z, (4, 7))),
    "all axes": lambda x, z: (torch.fft.fftn(z), torch.fft.ifftn(x), torch.fft.rfftn(x), torch.fft.irfftn(z)),
    "hermitian": lambda x, z: (torch.fft.hfft(z), torch.fft.ihfft(x), torch.fft.hfft(z, 5), torch.fft.hfft2(z)),
    "shifted": lambda x, z: (torch.fft.fftshift(torch.fft.fft(z)), torch.fft.ifftshift(z), torch.fft.fftfreq(6) * x),
    "pieces": lambda x, z: (
        torch.stft(x, 4, 2, window=_ONES, return_complex=True).abs(),
        torch.istft(torch.stft(x, 4, 2, window=_ONES, return_complex=True), 4, 2, window=_ONES),
    ),
}


@SETTINGS
@pytest.mark.parametrize("name", TRANSFORMS)
def test_fourier_transforms(name, settings):
    function = TRANSFORMS[name]
    model = OfWeight(lambda x, w: function(x, torch.complex(x, x.flip(0))))
    check(model, torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), settings)


@pytest.mark.parametrize("points", [64, 100])
def test_a_transform_is_as_exact_as_stated(points):
    x = torch.rand(16, points, generator=torch.Generator().manual_seed(2)) * 2 - 1
    made = run(securemodel.compile(OfWeight(lambda x, w: torch.fft.fft(x)), x, **TWO), x)[0]
    on_grid = (x.double() / UNIT).round() * UNIT
    off = torch.view_as_real(made - torch.fft.fft(on_grid)).abs()
    assert off.max() <= (points / 2 + 1) * UNIT + 2.0**-19  # results are float32
    assert off.square().mean().sqrt() <= points**0.5 * UNIT


def test_matrices_are_those_of_the_transforms():
    z = torch.randn(3, 9, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
    sides = torch.cat([z.real, z.imag], 1)
    forward, back = sides @ fourier_matrix(9, -1, "complex", "complex"), sides @ fourier_matrix(16, 1, "half", "real")
    assert (torch.complex(forward[:, :9], forward[:, 9:]) - torch.fft.fft(z)).abs().max() < 2.0**-18
    assert (back - torch.fft.irfft(z, 16, norm="forward")).abs().max() < 2.0**-18


class Rotary(nn.Module):
    """Attention's queries turned by their positions, as Meta's code of Llama does."""

    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(8, 8, bias=False)
        angles = torch.outer(torch.arange(5), 1.0 / 10000 ** (torch.arange(0, 4, 2) / 4))
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        xq = self.wq(x).view(2, 5, 2, 4)
        xq_ = torch.view_as_complex(xq.float().reshape(*xq.shape[:-1], -1, 2))
        return torch.view_as_real(xq_ * self.freqs_cis.view(1, 5, 1, 2)).flatten(3).type_as(xq)


class Mixing(nn.Module):
    """A block of FNet (Lee-Thorp et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.norm(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)


class Spectral(nn.Module):
    """A layer of a Fourier neural operator (Li et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv2d(1, 2, 1)
        self.weight = nn.Parameter(torch.randn(2, 3, 2, 2, dtype=torch.cfloat) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft2(self.lift(x))
        out = torch.zeros(x.shape[0], 3, 6, 4, dtype=torch.cfloat)
        out[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :2, :2], self.weight)
        return torch.fft.irfft2(out, s=(6, 6))


@SETTINGS
@pytest.mark.parametrize(
    ("layer", "shape"), [(Rotary, (2, 5, 8)), (Mixing, (2, 4, 8)), (Spectral, (2, 1, 6, 6))], ids=lambda p: str(p)
)
def test_layers_of_models(layer, shape, settings):
    torch.manual_seed(0)
    check(layer(), torch.randn(shape), settings)


class Complex(nn.Module):
    """A complex matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.weight


def test_inputs_and_results_may_be_complex():
    torch.manual_seed(0)
    model, z = Complex(), torch.randn(2, 4, dtype=torch.cfloat)
    for settings in (TWO, IDLE_THIRD, {**TWO, "protocol": "paillier", "insecure_key_bits": 512}):
        with securemodel.local(securemodel.compile(model, z, **settings)) as session:
            for rows in (z, torch.cat([z, z, z])):  # rows stand alone
                assert (session.run(rows) - model(rows)).abs().max() < 2.0**-11
            real = z.real.contiguous()
            assert (session.run(real) - model(real + 0j)).abs().max() < 2.0**-11
    found = securemodel.compare(securemodel.compile(model, z, **TWO), z)
    assert 0 < found.rows[-1].fixed_drift < 2.0**-11


def test_complex_numbers_in_the_place_of_real_ones_are_refused():
    model = nn.Linear(4, 3)
    program = securemodel.compile(model, torch.ones(2, 4), **TWO)
    with securemodel.local(program) as session, pytest.raises(InputError, match="complex numbers where real ones"):
        session.run(torch.ones(2, 4, dtype=torch.cfloat))


def test_what_cannot_be_is_refused_with_its_line():
    x = torch.ones(4, 4)
    for function, name in ((torch.tan, "aten.tan"), (torch.asin, "aten.asin"), (torch.linalg.inv, "aten.linalg_inv")):
        with pytest.raises(UnsupportedOperator, match=name) as caught:
            securemodel.compile(OfWeight(lambda x, w, f=function: f(x * w).real), x, **TWO)
        assert "complex numbers" in str(caught.value) and "test_complex.py" in str(caught.value)
    long = torch.ones(1, MOST_POINTS + 1)
    with pytest.raises(UnsupportedOperator, match="4097 points"):
        securemodel.compile(OfWeight(lambda x, w: torch.fft.rfft(x).real), long, **TWO)


def test_a_training_keeps_no_complex_numbers():
    model = Complex()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x):
        loss = model(x + 0j).abs().square().mean()
        loss.backward()
        optimizer.step()

    data = training.dataset(x=training.datasets.owned("a", torch.ones(8, 4)))
    with pytest.raises(UnsupportedOperator, match="a complex number that is kept between runs") as caught:
        training.compile_training(step, model, optimizer, batch=data.batches(4, seed=1), parties=("a", "b"))
    assert "would change" not in str(caught.value)
