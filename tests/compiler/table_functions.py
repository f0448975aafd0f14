"""More rows for the table of operators: functions, logic, norms, positions, windows."""

import torch
import torch.nn.functional as F
from table import IMAGE, MATRIX, SEQUENCE, Weighted, row
from torch import nn

aten = torch.ops.aten
PAIR, SQUARE, VECTORS = ((3, 5), (3, 5)), ((5, 5),), ((5,), (5,))
PLACES, GRID = torch.tensor([2, 0, 1, 1]), torch.tensor([[0, 1], [2, 2], [3, 4]])
MASK = torch.tensor([True, False, True, True, False])

torch.manual_seed(12)


def written_diagonal(x):
    x = x.clone()
    x.diagonal().mul_(2)
    return x


# --- rounding: inputs of halves too, as round takes them to even numbers ---
row((aten.floor.default, aten.ceil.default, aten.trunc.default), lambda x: (x.floor(), x.ceil(), x.trunc()), MATRIX)
row(aten.trunc.default, lambda x: (x.frac(), (9 * x).fix(), x.floor().ceil(), x.argmax(1).float().floor()), MATRIX)
row(aten.round.default, lambda x: (x.round(), (4 * x).floor().mul(0.5).round(), (100 * x).round()), MATRIX)
row(aten.round.decimals, lambda x: (torch.round(x, decimals=1), torch.round(50 * x, decimals=-1)), MATRIX)
row(aten.remainder.Scalar, lambda x: (x % 2, x % 0.75, 40 * x % 7, x % -3, (9 * x).floor() % 5), MATRIX)
row(aten.fmod.Scalar, lambda x: (x.fmod(2), (20 * x).fmod(3), x.fmod(-0.75)), MATRIX)
row(
    aten.div.Tensor_mode,
    lambda x: (40 * x // 3, x // 0.5, x // -2, torch.div(40 * x, 3, rounding_mode="trunc")),
    MATRIX,
)
row(aten.div.Tensor_mode, lambda x: torch.div(40 * x, -7, rounding_mode="trunc"), MATRIX)
row(
    (aten.remainder.Tensor, aten.fmod.Tensor, aten.floor_divide.default),
    lambda x: (x % torch.tensor(0.75), x.fmod(torch.tensor([2.0])), aten.floor_divide(9 * x, torch.tensor(2.5))),
    MATRIX,
)
row(
    (aten.remainder.Tensor, aten.fmod.Tensor, aten.div.Tensor_mode),
    lambda x, y: (
        (40 * x).round() // (5 * y).round().add(0.5),
        (40 * x).round() % (5 * y).round().add(0.5),
        torch.fmod((40 * x).round(), (5 * y).round().add(0.5)),
        torch.div((40 * x).round(), (5 * y).round().add(0.5), rounding_mode="trunc"),
    ),
    PAIR,
)
row(
    aten.remainder.Scalar_Tensor,
    lambda x: (7.5 % x.round().add(0.5), (20 * x).long() % ((3 * x).long().abs() + 1), 8 // x.round().add(0.25)),
    MATRIX,
)
row(aten.floor_divide.Scalar, lambda x: aten.floor_divide.Scalar(40 * x, 3), MATRIX)
row(aten.div.Scalar_mode, lambda x: aten.div.Scalar_mode(40 * x, 3, rounding_mode="floor"), MATRIX)
row(aten._to_copy.default, lambda x: ((4 * x).long(), x.int() + 1, x.round().bool(), (x > 0).double()), MATRIX)

# --- equality and logic ---
row((aten.eq.Scalar, aten.ne.Scalar), lambda x: (x.round() == 1, x.round() != -1, x.round() != float("inf")), MATRIX)
row((aten.eq.Tensor, aten.ne.Tensor), lambda x, y: (x.round() == y.round(), x.round() != y.round()), PAIR)
row((aten.eq.Tensor, aten.ne.Tensor), lambda x, y: ((x > 0) == (y > 0), (x > 0) != (y > 0), x == x.clone()), PAIR)
row((aten.bitwise_and.Tensor, aten.bitwise_or.Tensor), lambda x: ((x > 0) & (x < 1), (x > 1) | (x < 0)), MATRIX)
row((aten.bitwise_xor.Tensor, aten.bitwise_not.default), lambda x: ((x > 0) ^ (x < 1), ~(x > 0)), MATRIX)
row(aten.bitwise_and.Tensor, lambda x: (MASK & (x > 0), (x > 0) & MASK), MATRIX)
row(aten.add.Tensor, lambda x: ((x > 0) + (x < 1), MASK + (x > 0), (x > 0).int() + (x < 1)), MATRIX)
row(aten.index_put.default, lambda x: (torch.diagonal_scatter(x, x[0, :3], 1), written_diagonal(x[:, :3])), MATRIX)
row(aten.logical_and.default, lambda x, y: (torch.logical_and(x > 0, y > 0), torch.logical_and(x.round(), y > 0)), PAIR)
row(aten.logical_or.default, lambda x, y: (torch.logical_or(x > 0, y > 0), torch.logical_or(x.round(), y > 0)), PAIR)
row(aten.logical_xor.default, lambda x, y: torch.logical_xor(x.round(), y > 0), PAIR)
row(aten.logical_and.default, Weighted(lambda x, w: torch.logical_and(x > 0, w), (5,)), MATRIX)
row(aten.logical_not.default, lambda x: ((x > 0).logical_not(), x.round().logical_not()), MATRIX)
row((aten.any.default, aten.any.dim), lambda x: ((x > 2).any(), (x > 1).any(1), (x > 1).any(0, keepdim=True)), MATRIX)
row((aten.any.dims,), lambda x: ((x > 1).any((2, 3)), (x > -9).any((1, -1)), (x > 9).any((1, -1))), IMAGE)
row((aten.all.default, aten.all.dim), lambda x: ((x > -2).all(), (x > -1).all(1), x.round().all(0)), MATRIX)
row((aten.all.dims,), lambda x: ((x > -9).all((2, 3)), (x > -2).all((1, 2), keepdim=True)), IMAGE)
row((aten.isnan.default, aten.isinf.default), lambda x: (x.isnan(), x.isinf(), x.isfinite()), MATRIX)
row(aten.nan_to_num.default, lambda x: x.nan_to_num() + 1, MATRIX)
row(
    aten.where.self,
    lambda x: (torch.where(x > 0, x, 0.5), torch.where(x > 0, 1.5, 2), torch.where(MASK, x, -1)),
    MATRIX,
)
row(aten.where.self, lambda x, y: (torch.where(x > 0, x, y), x.masked_fill(x > 0, y.sum())), ((3, 5), (3, 1)))
row(aten.where.self, lambda x: torch.where(x > 0, x, float("-inf")).clamp(-9), MATRIX)
row(aten.masked_fill.Scalar, lambda x: x.masked_fill(MASK, torch.finfo(torch.float32).min).softmax(1), MATRIX)

# --- powers and products along axes ---
row(aten.pow.Tensor_Scalar, lambda x: (x**0, (x.abs() + 1) ** -1, (x.abs() + 1) ** -2, (x - 4) ** -3), MATRIX)
row(aten.pow.Tensor_Scalar, lambda x: ((x.abs() + 1) ** 0.5, (x.abs() + 1) ** -0.5, x.abs() ** 1.7), MATRIX)
row(aten.pow.Tensor_Scalar, lambda x: ((x.abs() + 1) ** -0.75, x.abs() ** (1 / 3), x.abs().float_power(2.5)), MATRIX)
row((aten.pow.Scalar, aten.exp2.default), lambda x: (3 ** (x - 2), torch.exp2(x)), MATRIX)
row(aten.pow.Tensor_Tensor, lambda x, y: (x.abs() + 1) ** -y.abs(), PAIR)
row(
    aten.pow.Tensor_Tensor,
    Weighted(lambda x, w: (w.abs() ** (x - 1), (x.abs() + 1) ** w.clamp(-1, 1)), (5,), shift=3.0),
    MATRIX,
)
row(
    (aten.xlogy.Tensor, aten.xlogy.Scalar_Self, aten.xlogy.Scalar_Other),
    lambda x, y: (torch.xlogy(x, y.abs() + 1), torch.xlogy(2.0, y.abs() + 1), torch.xlogy(x, 3.0)),
    PAIR,
)
row(aten.log10.default, lambda x: (x.abs() + 1).log10(), MATRIX)
row((aten.sinh.default, aten.cosh.default), lambda x: (x.sinh(), x.cosh()), MATRIX)
row(aten.logit.default, lambda x: (x.sigmoid().logit(), (x * 0.3 + 0.5).logit(0.25)), MATRIX)
row(aten.hypot.default, lambda x, y: torch.hypot(x + 3, y), PAIR)
row((aten.prod.default, aten.prod.dim_int), lambda x: (x.prod(), x.prod(1), x.prod(0, keepdim=True)), MATRIX)
row(aten.cumprod.default, lambda x: (x.cumprod(1), x.cumprod(0)), MATRIX)

# --- activations ---
row((aten.log_sigmoid.default, aten.erfc.default), lambda x: (F.logsigmoid(x), x.erfc()), MATRIX)
row(aten.logaddexp.default, lambda x, y: torch.logaddexp(x, y), PAIR)
row(aten.logaddexp.default, Weighted(lambda x, w: torch.logaddexp(x, w), (5,)), MATRIX)
row(
    aten.softplus.default,
    lambda x: [F.softplus(2 * x, beta, threshold) for beta, threshold in ((1, 1), (2, 3), (0.5, 0), (1, -2), (3, 100))],
    MATRIX,
)
row(aten.rrelu.default, nn.RReLU(), MATRIX)
row((), lambda x: (F.softsign(x), F.tanhshrink(x), F.hardshrink(x), F.softshrink(x)), MATRIX)
row((), lambda x: (F.threshold(x, 0.5, -1.0), F.glu(x[:, :4]), F.softmin(x, 1), F.silu(x[:, :2]) * x[:, 2:4]), MATRIX)
row(aten.sgn.default, lambda x: (x.sgn(), torch.heaviside(x, torch.tensor(0.5))), MATRIX)
row(
    (),
    lambda x: (F.relu(x.clone(), inplace=True), x.clone().mul_(2).add_(1), F.hardtanh(x.clone(), inplace=True)),
    MATRIX,
)
row((aten.sin.default, aten.cos.default), lambda x: (x.sin(), (100 * x).cos()), MATRIX)
row(aten.atan.default, lambda x: ((4 * x).atan(), (0.1 * x).atan()), MATRIX)
row((aten.asin.default, aten.acos.default), lambda x: (x.tanh().asin(), x.tanh().acos()), MATRIX)
row(
    (aten.tan.default, aten.atan2.default), lambda x, y: (x.tanh().tan(), torch.atan2(x, y), torch.atan2(x, MASK)), PAIR
)
row(aten.angle.default, lambda x: (x.angle(), torch.complex(x, x.flip(0)).angle()), MATRIX)
row((aten.asinh.default, aten.acosh.default), lambda x: (x.asinh(), (x.abs() + 1).acosh()), MATRIX)
row((aten.atanh.default, aten.erfinv.default), lambda x: ((x / 4).atanh(), (x / 4).erfinv()), MATRIX)
row((aten.lgamma.default, aten.digamma.default), lambda x: ((x.abs() + 1).lgamma(), (x.abs() + 1).digamma()), MATRIX)
row((), lambda x: (torch.ldexp(x, PLACES[:1]), torch.special.ndtri(x.sigmoid())), MATRIX)
row((aten.signbit.default, aten.copysign.Scalar), lambda x: (x.signbit(), x.copysign(-2.0), x.copysign(0.5)), MATRIX)
row(aten.copysign.Tensor, lambda x, y: (x.copysign(y), x.copysign(GRID[:, :1] - 1.5)), PAIR)
row(aten.copysign.Tensor, Weighted(lambda x, w: (x.copysign(w), torch.copysign(w, x)), (5,)), MATRIX)
row(
    (aten.bitwise_and.Scalar, aten.__lshift__.Scalar, aten.__rshift__.Scalar),
    lambda x: ((9 * x).long() & 3, (9 * x).long() << 2, (9 * x).long() >> 1, ~(9 * x).long(), (x > 0) & True),
    MATRIX,
)
row(
    (aten.bitwise_left_shift.Tensor_Scalar, aten.bitwise_right_shift.Tensor_Scalar),
    lambda x: (torch.bitwise_left_shift((9 * x).long(), 1), torch.bitwise_right_shift((9 * x).long(), 2)),
    MATRIX,
)
row(
    (aten.bitwise_or.Scalar, aten.bitwise_xor.Scalar),
    lambda x: ((x > 0) | True, (x > 0) | False, (x > 0) ^ True, (x > 0) ^ False),
    MATRIX,
)

# --- extremes ---
row(
    (aten.amin.default, aten.min.default, aten.max.default),
    lambda x: (x.amin(1), x.amin((0, 1)), x.min(), x.max()),
    MATRIX,
)
row((aten.fmax.default, aten.fmin.default), lambda x, y: (x.fmax(y), x.fmin(y), torch.max(x, y)), PAIR)
row(aten.maximum.default, lambda x: (torch.maximum(x, torch.tensor(0.3)), *torch.aminmax(x, dim=1)), MATRIX)
row(aten.clamp.Tensor, lambda x, y: (x.clamp(y, y + 1), x.clamp(min=y), x.clamp(max=y)), PAIR)
row((aten.cummax.default, aten.cummin.default), lambda x: (*x.cummax(1), *x.cummin(0)), MATRIX)


def along_no_axis(x):
    """Operators along an axis of a number that has none."""
    z = x[0, 0]
    return (
        *(f(z, 0) for f in (torch.amax, torch.logsumexp, torch.softmax, torch.log_softmax, torch.sum, torch.mean)),
        *(f(z, -1) for f in (torch.argmax, torch.argmin, torch.cumsum, torch.cumprod, torch.prod, torch.squeeze)),
        *(t for f in (torch.max, torch.min, torch.sort, torch.median) for t in f(z, 0)),
        *(*z.topk(1, 0), *z.kthvalue(1, 0), *torch.aminmax(z, dim=0), *z.max(0, keepdim=True)),
        *((z > 0).any(0), (z > 0).all(0), z.cummax(0)[0], z.transpose(0, 0), z.index_select(0, PLACES[1:2])),
        *(F.normalize(z, dim=0), z.unfold(0, 1, 1), z.gather(0, torch.tensor(0))),
    )


row(aten.amax.default, along_no_axis, MATRIX)
row(aten.logsumexp.default, lambda x: (x.logsumexp((0, 1)), x.logsumexp((0, 2), keepdim=True)), ((2, 3, 4),))

# --- types: a comparison gives booleans ---
row(
    aten.isnan.default,
    lambda x, y: (
        *(torch.isclose(x, x.clone()), torch.isclose(x, y, atol=0.5), ~(x > y), ~x.isnan(), ~(x != float("inf"))),
        *(~(x == 0.5), (x > 0).int().abs(), ~torch.where(MASK, x > 0, y > 0), ~torch.cat([x > 0, y > 0]), x.isfinite()),
    ),
    PAIR,
)

# --- norms and distances ---
row(aten.group_norm.default, nn.GroupNorm(2, 4), IMAGE)
row(aten.group_norm.default, nn.GroupNorm(1, 4, affine=False), SEQUENCE)
row(aten.instance_norm.default, nn.InstanceNorm2d(4, affine=True), IMAGE)
row(aten.instance_norm.default, nn.InstanceNorm1d(4, track_running_stats=True), SEQUENCE)
row(aten._native_batch_norm_legit.no_stats, nn.BatchNorm2d(4, track_running_stats=False), IMAGE)
row(aten._native_batch_norm_legit.no_stats, lambda x: F.batch_norm(x, None, None, training=True), SEQUENCE)
row(aten.rms_norm.default, nn.RMSNorm(5), MATRIX)
row(aten.rms_norm.default, lambda x: F.rms_norm(x, (7, 8), eps=1e-3), IMAGE)
row((aten.avg_pool3d.default,), nn.LocalResponseNorm(3, alpha=0.5, k=2.0), IMAGE)
row((), nn.LocalResponseNorm(2), SEQUENCE)
row(aten.var_mean.correction, lambda x: (x.std(1), x.std(0, correction=0, keepdim=True), *torch.var_mean(x, 1)), MATRIX)
row(aten.linalg_vector_norm.default, lambda x: (x.norm(), x.norm(dim=1), torch.linalg.norm(x, 1, dim=0)), MATRIX)
row(
    aten.linalg_vector_norm.default,
    lambda x: [torch.linalg.vector_norm(x, p, dim=1) for p in (0, 3, float("inf"), -float("inf"))],
    MATRIX,
)
row((), lambda x: (F.normalize(x), F.normalize(x, p=1, dim=0), F.normalize(x, p=float("inf"))), MATRIX)
row(aten.cosine_similarity.default, lambda x, y: F.cosine_similarity(x, y), PAIR)
row(aten.cosine_similarity.default, Weighted(lambda x, w: F.cosine_similarity(x[:, None], w, dim=-1), (4, 5)), MATRIX)
row(aten.cosine_similarity.default, Weighted(lambda x, w: F.cosine_similarity(w, x, dim=0), (3, 1)), MATRIX)
row(aten.cdist.default, lambda x, y: (torch.cdist(x, y), torch.cdist(x, y, p=1)), ((2, 3, 5), (2, 4, 5)))
row(aten.cdist.default, Weighted(lambda x, w: (torch.cdist(x, w), torch.cdist(x, w, float("inf"))), (4, 5)), MATRIX)
row(aten.cdist.default, lambda x: torch.cdist(x, 2 * x), ((30, 3),))
row(aten.pdist.default, lambda x: F.pdist(x), MATRIX)
row((), lambda x, y: (F.pairwise_distance(x, y), F.pairwise_distance(x, y, p=1)), PAIR)
row(
    (),
    lambda x, y: (F.mse_loss(x, y), F.l1_loss(x, y, reduction="none"), F.smooth_l1_loss(x, y), F.huber_loss(x, y)),
    PAIR,
)

bce = aten.binary_cross_entropy_with_logits.default
row(bce, lambda x, y: [F.binary_cross_entropy_with_logits(x, y, reduction=r) for r in ("mean", "none")], PAIR)
row(
    bce,
    Weighted(lambda x, y, w, p: F.binary_cross_entropy_with_logits(x, y, w, pos_weight=p), (5,), (5,), shift=1.0),
    PAIR,
)

# --- products ---
row((), lambda x, y: (torch.outer(x, y), torch.dot(x, y), torch.kron(x, y), torch.inner(x, y)), VECTORS)
row(
    (),
    lambda x: (torch.kron(x, x[:2]), x @ x[0], torch.linalg.vecdot(x, x), torch.cross(x[:, :3], x[:, 2:], dim=1)),
    MATRIX,
)
row(aten.addmv.default, lambda x: torch.addmv(x[0], x, x[1], beta=2, alpha=0.5), SQUARE)
row(aten.addbmm.default, lambda x, y: torch.addbmm((x @ y)[0], x, y, beta=0.5), ((2, 3, 5), (2, 5, 4)))
row(aten.addmm.default, Weighted(lambda x, w, b: torch.addmm(b, x, w, beta=2, alpha=0.5), (5, 4), (4,)), MATRIX)
row((), lambda x, y: (torch.baddbmm(x @ y, x, y), torch.tensordot(x, y, ([2], [1]))), ((2, 3, 5), (2, 5, 4)))
row(
    (),
    lambda x, y: [torch.einsum(e, x, y) for e in ("bij,bjk->bik", "bij,bjk->bi", "bij,bjk->bijk", "bij,cjk->bcik")],
    ((2, 3, 5), (2, 5, 4)),
)
row((), lambda x: (torch.einsum("ii->i", x), torch.einsum("ij->", x), torch.einsum("ij,kj->ik", x, x)), SQUARE)
row((), lambda x: (torch.addcmul(x, x, x, value=0.5), torch.addcdiv(x, x, x.abs() + 1)), MATRIX)
row((), lambda x, y: (torch.lerp(x, y, 0.3), torch.lerp(x, y, x)), PAIR)
row(aten.bilinear.default, nn.Bilinear(5, 4, 3), ((3, 5), (3, 4)))
row(aten.bilinear.default, lambda x, y: F.bilinear(x, x, y), ((3, 5), (2, 5, 5)))

# --- matrices ---
EYE = torch.eye(5)


def definite(x):
    """A well conditioned symmetric matrix."""
    return x @ x.T / 8 + EYE


row(
    (aten.linalg_inv_ex.default, aten._linalg_solve_ex.default),
    lambda x: (torch.inverse(x / 4 + EYE), torch.linalg.solve(x / 4 + EYE, x), torch.linalg.solve(EYE, x)),
    SQUARE,
)
row(
    aten._linalg_solve_ex.default,
    lambda x: (torch.linalg.solve(x / 4 + EYE, x[0]), torch.linalg.solve(x / 4 + EYE, x[:2], left=False)),
    SQUARE,
)
row(
    aten.linalg_solve_triangular.default,
    lambda x: (
        torch.linalg.solve_triangular(x.tril() / 4 + EYE, x, upper=False),
        torch.linalg.solve_triangular(x / 4, x, upper=True, left=False, unitriangular=True),
    ),
    SQUARE,
)
row(aten.linalg_cholesky_ex.default, lambda x: torch.linalg.cholesky(definite(x)), SQUARE)
row(aten.cholesky.default, lambda x: torch.cholesky(definite(x), upper=True), SQUARE)
row(
    (aten.cholesky_solve.default, aten.cholesky_inverse.default),
    lambda x: (
        torch.cholesky_solve(x[:, :2], x.tril() / 4 + 2 * EYE),
        torch.cholesky_inverse(x / 4 + 2 * EYE, upper=True),
        torch.cholesky_solve(x, 2 * EYE),
    ),
    SQUARE,
)
row(
    aten.linalg_qr.default,
    lambda x: (*torch.linalg.qr(x[:, :3] + EYE[:, :3]), *torch.linalg.qr(x[:, :2] + EYE[:, :2], mode="complete"),
               *torch.linalg.qr(x[:3] + EYE[:3]), torch.linalg.qr(x[:, :1], mode="r")[1], *torch.linalg.qr(EYE.triu() * x[:1])),
    SQUARE,
)  # fmt: skip
row(aten.linalg_matrix_exp.default, lambda x: torch.matrix_exp(x / 4), SQUARE)
row((aten._linalg_det.default, aten._linalg_slogdet.default), lambda x: (x[:4, :4].det(), *(x + EYE).slogdet()), SQUARE)
row(aten._linalg_slogdet.default, lambda x: definite(x)[:3, :3].logdet(), SQUARE)
row(aten.logcumsumexp.default, lambda x: (x.logcumsumexp(0), x.logcumsumexp(-1)), MATRIX)

# --- positions ---
row(
    aten.index.Tensor,
    lambda x: (x[:, PLACES], x[PLACES], x[..., GRID], x[PLACES, PLACES], x[PLACES[:, None], PLACES]),
    MATRIX,
)
row(aten.index.Tensor, lambda x: (x[:, PLACES, :, PLACES], x[:, PLACES, PLACES], x[0, -PLACES]), IMAGE)
row(aten.index_select.default, lambda x: (x.index_select(1, PLACES), x.take(PLACES), x.repeat_interleave(2, 1)), MATRIX)
row(aten.gather.default, lambda x: (x.gather(1, GRID), torch.take_along_dim(x, PLACES[None], 1)), MATRIX)
row(aten.masked_select.default, lambda x: x.masked_select(MASK) * 2, MATRIX)
row(aten.index.Tensor, lambda x: (x[:, MASK] + 1, x[MASK[:3]].sum(0)), MATRIX)
row(aten.diagonal.default, lambda x: (x.trace(), x.diagonal(1), x.diag(), torch.diag_embed(x, 1), x[0].diag()), SQUARE)
row((), lambda x: (x.tril(), x.triu(1), torch.block_diag(x, x), *torch.meshgrid(x[0], x[1], indexing="ij")), SQUARE)
row(aten.as_strided.default, lambda x: aten.as_strided(x, [2, 3], [1, 2], 1), MATRIX)
row(aten.unfold.default, lambda x: (x.unfold(-1, 3, 2), x.unfold(1, 2, 1)), SEQUENCE)
row((), lambda x: (x.movedim(0, 1), x.swapaxes(1, 2), x.rot90(), x.fliplr(), x.diff(dim=1)), IMAGE)
row(
    (),
    lambda x: (
        torch.vstack([x, x]),
        torch.column_stack([x, x]),
        *x.tensor_split(2, 1),
        torch.broadcast_to(x, (2, 3, 5)),
    ),
    MATRIX,
)
row(
    aten.repeat_interleave.self_Tensor,
    lambda x: aten.repeat_interleave.self_Tensor(x, GRID[:, 0], 0, output_size=5),
    MATRIX,
)


def written(x, y):
    """In-place assignments."""
    a, b, c, d = x.clone(), torch.zeros(3, 5), x.clone(), x.clone()
    a[:, 0], a[1], a[:, 1:3], a[2] = y[:, 0], 0, y[:, 1:3], a[2] + 1
    b[:, 1], c[x > 0], d[:, PLACES[:2]] = x[:, 1], 0.5, y[:, :2]
    c[:, ::2] *= 2
    return a, b, c, d


row((aten.copy.default, aten.slice_scatter.default, aten.index_put.default), written, PAIR)
row(aten.select_scatter.default, lambda x, y: x.select_scatter(y[:, 0], 1, -2), PAIR)
row(
    (aten.scatter.src, aten.scatter.value),
    lambda x, y: (x.scatter(1, GRID, y[:, :2]), x.scatter(0, GRID % 3, 1.5)),
    PAIR,
)
row(
    (aten.scatter_add.default, aten.index_add.default),
    lambda x, y: (
        x.scatter_add(1, GRID, y),
        x.index_add(1, GRID[1], y[:, :2]),
        x.index_add(0, GRID[1] - 2, y[:2], alpha=-2),
    ),
    PAIR,
)
row(aten.scatter_reduce.two, lambda x, y: x.scatter_reduce(1, GRID, y, "sum"), PAIR)
row(
    aten.index_copy.default,
    lambda x, y: (x.index_fill(1, GRID[2], 2.0), x.index_copy(1, PLACES[:2], y[:, :2])),
    PAIR,
)
row(aten.masked_scatter.default, lambda x, y: x.masked_scatter(MASK.expand(3, 5), y), PAIR)
row((), lambda x: (torch.full_like(x, 2) + x, torch.ones_like(x) * x, x.new_zeros(2, 2) + x[0, 0]), MATRIX)

# --- windows ---
row(aten.im2col.default, lambda x: (F.unfold(x, 3), F.unfold(x, (2, 3), (2, 1), (1, 0), (2, 1))), IMAGE)
row(aten.im2col.default, lambda x: F.unfold(x, 2), ((4, 6, 6),))
row(aten.col2im.default, lambda x: F.fold(x, (4, 5), 2), ((2, 8, 12),))
row(aten.col2im.default, lambda x: F.fold(x, (5, 3), (2, 2), (2, 1), 1, (2, 2)), ((2, 8, 6),))
row((), lambda x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x[:, :, :6], 2), F.channel_shuffle(x, 2)), IMAGE)
row(
    aten.upsample_bilinear2d.vec,
    lambda x: [
        F.interpolate(x, scale_factor=2, mode="bilinear"),
        F.interpolate(x, size=(5, 10), mode="bilinear", align_corners=True),
        F.interpolate(x, scale_factor=(0.6, 1.7), mode="bilinear"),
    ],
    IMAGE,
)
row(
    aten.upsample_bicubic2d.vec,
    lambda x: [
        F.interpolate(x, scale_factor=1.5, mode="bicubic"),
        F.interpolate(x, size=(9, 5), mode="bicubic", align_corners=True),
    ],
    IMAGE,
)
row(aten._upsample_bilinear2d_aa.vec, lambda x: F.interpolate(x, size=(3, 12), mode="bilinear", antialias=True), IMAGE)
row(aten._upsample_bicubic2d_aa.vec, lambda x: F.interpolate(x, size=(3, 12), mode="bicubic", antialias=True), IMAGE)
row(aten.upsample_linear1d.vec, lambda x: F.interpolate(x, size=13, mode="linear"), SEQUENCE)
row(aten.upsample_trilinear3d.vec, lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), ((1, 2, 2, 3, 2),))
row(
    (),
    lambda x: (F.interpolate(x, size=(5, 10), mode="nearest-exact"), F.interpolate(x, size=(3, 4), mode="area")),
    IMAGE,
)
row((), lambda x: F.interpolate(x, scale_factor=2), ((1, 2, 2, 3, 2),))
