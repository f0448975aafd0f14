"""Differential privacy: clipping, the parties' noise, what is counted, and what is said not to be covered."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager

import pytest
import test_joint as joint
import torch
import torch.nn.functional as F
from scipy import optimize, stats
from torch import nn

import securemodel
from protocols.errors import InputError, Mismatch
from protocols.prg import insecure_test_key
from securemodel import training
from securemodel.compiler.lower.private import PRIVATE, Bounds
from securemodel.errors import CompileError, TrainingDiverged
from securemodel.inspect.audit import audit
from securemodel.training import noise as noises
from securemodel.training.checkpoints import read
from securemodel.training.noise import NoiseSource, _uniform
from securemodel.training.privacy import DP, TakenPart, influence

UNIT, PARTIES = 2.0**-16, joint.PARTIES
QUIET = DP(noise_multiplier=1e-9, max_grad_norm=1.0)
"""Noise that is below the unit in which it is rounded."""


def source(seed: int) -> NoiseSource:
    return NoiseSource(insecure_test_key(seed, "noise"))


class TestNoise:
    def test_it_is_normal_and_one_number_says_nothing_of_another(self):
        drawn = source(1).draw(200_001)
        assert drawn.dtype == torch.float64 and drawn.shape == (200_001,)
        first, second = drawn[:100_000], drawn[100_001:]  # the cosines and the sines
        for part in (drawn, first, second):
            assert stats.kstest(part.numpy(), "norm").pvalue > 1e-3
        assert stats.kstest((1.02 * drawn).numpy(), "norm").pvalue < 1e-3, "another deviation would be noticed"
        squares = torch.corrcoef(torch.stack([first, second, first**2, second**2]))
        assert (squares - torch.diag(squares.diag())).abs().max() < 5 / math.sqrt(100_000)

    def test_calls_and_parties_draw_other_numbers(self):
        one = source(1)
        drawn = torch.stack([one.draw(50_000), one.draw(50_000), source(2).draw(50_000)])
        assert (torch.corrcoef(drawn) - torch.eye(3)).abs().max() < 5 / math.sqrt(50_000)
        assert not torch.equal(NoiseSource().draw(4), NoiseSource().draw(4)), "the key is the operating system's"

    def test_the_smallest_word_keeps_its_digits(self):
        words = torch.tensor([0, 1, -1, 1 << 62])
        assert _uniform(words).tolist() == [2.0**-65, 1.5 * 2.0**-64, 1.0, 0.25 + 2.0**-65]


class Cut(nn.Module):
    """A gradient as `kind` makes it, cut to a norm."""

    def __init__(self, norm: float, kind: str) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([1e6 if kind == "overflow" else 1.0]))
        self.norm, self.kind = norm, kind

    def forward(self, x, silence):
        x = x * self.factor
        if self.kind == "wrapped":  # whole multiples of truncated numbers: 16 fractional bits, and any ring element
            x = (torch.relu(x) - torch.relu(-x)) * 16384 * 16384
        return PRIVATE(x, [silence], self.norm)


COUNT = 40


@contextmanager
def cutting(norm: float, kind: str = "product", rounding: str = "exact"):
    silence = torch.zeros(COUNT, dtype=torch.float64)
    options = {"weights": "b", "inputs": ("a", "b"), "outputs": "a", "rounding": rounding}
    program = securemodel.compile(Cut(norm, kind).eval(), (torch.zeros(COUNT), silence), **options)
    with securemodel.local(program) as session:
        yield lambda x: session.run(x, silence).double()


class TestClipping:
    @pytest.mark.parametrize("norm", [2.0**-6, 0.3, 2.0**6])
    def test_it_is_that_of_torch(self, norm):
        target = Bounds.of(COUNT, norm).target
        assert norm * (1 - 2.0**-8) < target < norm
        with cutting(norm) as cut:
            for ratio in (0.0, 0.5, 0.997, 1.0, 1.01, 3.0, 60.0, 150.0):
                x = torch.randn(COUNT, generator=torch.Generator().manual_seed(COUNT))
                x *= ratio * norm / x.norm()
                like = nn.Parameter(torch.zeros(COUNT))
                like.grad = x.clone()
                nn.utils.clip_grad_norm_([like], target)
                made = cut(x)
                assert (made - like.grad).abs().max() < 2 * UNIT + 2.0**-10 * like.grad.abs().max(), ratio
                assert made.norm() <= norm

    @pytest.mark.parametrize("rounding", ["exact", "fast"])
    @pytest.mark.parametrize("kind", ["product", "overflow", "wrapped"])
    def test_the_norm_is_bounded_whatever_the_step_computed(self, kind, rounding):
        generator, found = torch.Generator().manual_seed(5), []
        with cutting(1.0, kind, rounding) as cut:
            for exponent in range(-4, 27, 3):
                found.append(cut(2.0**exponent * torch.randn(COUNT, generator=generator)).norm())
            edges = torch.tensor([1.0, -1.0, 1 - UNIT, UNIT - 1, 0.0, UNIT, 0.5, -0.5]) * 2.0**19  # 2^63 in the ring
            for x in (edges, edges + UNIT, edges - UNIT):
                found.append(cut(x.repeat(COUNT // len(edges))).norm())
        assert max(found) <= 1.0 and min(found[3:]) > 0.9

    @pytest.mark.parametrize("norm", [2.0**-6, 1.0, 2.0**6])
    def test_the_largest_and_smallest_factor(self, norm):
        limit, alone = Bounds.of(COUNT, norm).limit, torch.zeros(COUNT)
        alone[3] = limit
        with cutting(norm) as cut:
            for x in (alone, torch.full((COUNT,), 2 * limit), torch.full((COUNT,), -(2.0**25))):
                made = cut(x)
                assert norm * (1 - 2.0**-7) < made.norm() <= norm
                assert torch.equal(made.sign(), x.double().sign())


def clipped(made: joint.Made, steps: int, norm: float, batches=None) -> dict[str, torch.Tensor]:
    """The weights after steps of ordinary PyTorch with clipped gradients."""
    parameters = [p for group in made.optimizer.param_groups for p in group["params"]]
    target = Bounds.of(sum(p.numel() for p in parameters if p.requires_grad), norm).target
    real = made.optimizer.step
    made.optimizer.step = lambda: (nn.utils.clip_grad_norm_(parameters, target), real())
    joint.eager(made, steps)
    return made.model.state_dict()


def two(data=None, **options) -> joint.Made:
    whole = {name: column[0].tensor for name, column in joint.table().columns.items()}
    owner = {"bank": "bank", "shop": "shop", "label": "shop"}
    data = training.dataset(**{name: training.owned(owner[name], tensor) for name, tensor in whole.items()})
    return joint.job(data, parties=["bank", "shop"], **options)


class TestSteps:
    @pytest.mark.parametrize("make", [joint.job, two])
    def test_without_noise_weights_are_those_of_clipped_training(self, make):
        made = make(dp=QUIET)
        with made.local() as run:
            for _ in range(6):
                run.step()
            weights = run.export(to="bank")
        for name, right in clipped(made, 6, 1.0).items():
            assert (weights[name] - right).abs().max() < 16 * UNIT, name
        free = make()
        joint.eager(free, 6)
        assert (free.model.weight - weights["weight"]).abs().max() > 1e-2, "clipping does something here"

    def test_every_party_adds_noise_of_the_size_that_was_asked_for(self, monkeypatch):
        keys = iter(range(100))
        monkeypatch.setattr(noises, "new_key", lambda: insecure_test_key(next(keys), "noise"))
        dp = DP(noise_multiplier=0.7, max_grad_norm=0.5)
        made = joint.job(momentum=0.0, dp=dp)
        made.optimizer.param_groups[0]["lr"] = 1.0
        with made.local() as run:
            run.step()
            weights = run.export(to="bank")
        quiet = joint.job(momentum=0.0, dp=DP(1e-9, 0.5))
        quiet.optimizer.param_groups[0]["lr"] = 1.0
        right = clipped(quiet, 1, 0.5)
        drawn = [source(n).draw(8) * 0.7 * 2 * 0.5 for n in range(3)]
        found = torch.cat([(right[name] - weights[name]).double().reshape(-1) for name in ("weight", "bias")])
        assert (found - sum(drawn)).abs().max() < 8 * UNIT
        assert all((found - sum(drawn) + one).abs().max() > 0.1 for one in drawn)

    def test_a_partys_noise_is_its_share_alone_and_has_the_digits_of_the_gradient(self):
        graph = joint.job(dp=DP(1.0, 1.0)).program.graph
        own = [node for node in graph.nodes if node.op == "own" and node.shape == (8,)]
        assert sorted(node.owner for node in own) == sorted(PARTIES)
        sums = []
        for node in own:
            (reader,) = [other for other in graph.nodes if node.id in other.args]
            assert reader.op == "linear" and reader.attrs["kind"] == "add"
            assert {graph[a].frac for a in reader.args} == {32}
            sums.append(next(a for a in reader.args if a != node.id))
        first = min(sums)
        assert graph[first].op == "truncate" and set(sums) - {first} < {
            node.id for node in graph.nodes if node.op == "linear"
        }

    def test_the_plan_is_what_is_sent(self):
        made = joint.job(dp=DP(1.0, 1.0))
        with made.local() as run:
            run.step()
            before = {me: channel.stats.sent_bytes for me, channel in run._where.session.channels.items()}
            run.step()
            after = {me: channel.stats.sent_bytes for me, channel in run._where.session.channels.items()}
        assert {me: after[me] - before[me] for me in after} == made.plan("lan").step.sent_bytes

    def test_groups_and_frozen_parameters_are_one_vector(self):
        model = nn.Sequential(nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 1))
        model[0].bias.requires_grad_(False)
        groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.05)
        step = joint.step_of(model, optimizer)
        job = training.compile_training(
            step, model, optimizer, batch=joint.table().batches(16), parties=PARTIES, dp=QUIET
        )
        assert [drawn.count for drawn in job.captured.noise] == [4 * 7 + 4 + 1] * 3
        with job.local() as run:
            run.step()
            weights = run.export(to="bank")
        made = joint.Made(job, optimizer, step, model, joint.table())
        for name, right in clipped(made, 1, 1.0).items():
            assert name not in weights or (weights[name] - right).abs().max() < 8 * UNIT, name

    def test_moments_stay_in_range_beside_noise(self):
        model = nn.Linear(7, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        step = joint.step_of(model, optimizer)
        dp = DP(noise_multiplier=4.0, max_grad_norm=2.0)
        job = training.compile_training(
            step, model, optimizer, batch=joint.table().batches(16), parties=PARTIES, reveal="all", dp=dp
        )
        assert job.captured.roots.scale * (2.0 + 9.5 * math.sqrt(3) * 16.0) < 128
        before = model.weight.detach().clone()
        with job.local() as run:
            run.step()
            moved = (run.export(to="bank")["weight"] - before).abs()
        assert 0.009 < moved.min() and moved.max() < 0.0101, "the first step of Adam is the rate, whatever the gradient"
        assert not job.simulate(4).overflowed

    def test_a_simulation_draws_noise(self):
        made = joint.job(dp=DP(1.0, 1.0))
        first, second = made.simulate(3), made.simulate(3)
        assert (
            first.difference < 64
            and first.returned[0] == second.returned[0]
            and first.returned[2] != second.returned[2]
        )


class TestCheckpoints:
    def test_a_resumed_run_draws_new_noise_and_goes_on_counting(self, tmp_path):
        dp, ends = DP(1.0, 1.0), []
        with joint.job(dp=dp).local() as run:
            run.train_epoch()
            run.step()
            run.checkpoint(tmp_path)
            shares, progress = read(tmp_path / "bank", "bank", run._where.key("bank", tmp_path / "bank"), 4)
        assert set(shares) == {name for name in run.job.captured.states} and progress.taken["steps"] == 4
        for _ in range(2):
            with joint.job(dp=dp).local() as run:
                assert run.resume(tmp_path) == 4 and run._taken.most(3) == 2
                run.step()
                ends.append(run.export(to="bank")["weight"])
                run.train_epoch()
                run.step()
                assert run._taken.most(3) == 3
        assert (ends[0] - ends[1]).abs().max() > 1e-2

    def test_steps_that_a_guard_takes_back_count(self):
        made = joint.job(momentum=0.0, guard_every=2, evaluate=None, dp=DP(0.5, 1.0))
        with made.local() as run:
            run.step()
            run.step()
            made.optimizer.param_groups[0]["lr"] = 1e3
            with pytest.raises(TrainingDiverged):
                for _ in range(2):
                    run.step()
            made.optimizer.param_groups[0]["lr"] = 0.05
            run.step()
            assert run.step_number == 3 and run._taken.again == {2: 1} and run._taken.most(3) == 3


class TestCounting:
    @pytest.mark.parametrize("size, steps", [(7, 1), (7, 40), (16, 9), (60, 3), (11, 23)])
    def test_no_row_is_in_more_steps_than_are_counted(self, size, steps):
        batches, taken, seen = joint.table().batches(size, seed=4), TakenPart(), torch.zeros(joint.ROWS)
        order = [*range(steps), *range(steps // 2, steps)]  # the second half is made once more
        for step in order:
            taken.note(step, own=False)
            seen[torch.from_numpy(batches.positions(step)[0])] += 1
        most = taken.most(batches.steps_per_epoch)
        assert seen.max() <= most <= 2 * math.ceil(steps / batches.steps_per_epoch)
        assert TakenPart.restored(taken.saved()) == taken
        taken.note(steps, own=True)
        assert taken.most(batches.steps_per_epoch) >= most + 1

    def test_one_epoch_is_one_step_of_each_row(self):
        taken = TakenPart()
        for step in range(6):
            taken.note(step, own=False)
            assert taken.most(3) == 1 + step // 3


def balle_wang(sigma: float, delta: float) -> float:
    """Theorem 8 of Balle and Wang (ICML 2018), solved for epsilon, for a sensitivity of 1."""
    phi = stats.norm.cdf
    of = lambda e: phi(0.5 / sigma - e * sigma) - math.exp(e) * phi(-0.5 / sigma - e * sigma)
    return float(optimize.brentq(lambda e: of(e) - delta, 0.0, 200.0, xtol=1e-12))


class TestEpsilon:
    @pytest.fixture(autouse=True)
    def _library(self):
        self.library = pytest.importorskip("dp_accounting", reason="the extra securemodel[privacy] is not installed")

    def test_it_is_that_of_the_analytic_gaussian_mechanism(self):
        job = joint.job(dp=DP(1.0, 3.0))
        assert job.privacy(1, 1e-5).epsilon == pytest.approx(balle_wang(1.0, 1e-5), abs=1e-6)
        assert job.privacy(1, 1e-5).epsilon == pytest.approx(4.3772, abs=1e-3)
        for epochs in (2, 10, 50):
            assert job.privacy(epochs, 1e-6).epsilon == pytest.approx(balle_wang(1 / math.sqrt(epochs), 1e-6), abs=1e-5)

    def test_it_is_that_of_the_librarys_accountant_composed_step_by_step(self):
        accountant = self.library.pld.PLDAccountant()
        accountant.compose(self.library.GaussianDpEvent(2.0), 10)
        exact = joint.job(dp=DP(2.0, 1.0)).privacy(10, 1e-5).epsilon
        assert exact == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)

    def test_a_run_says_what_its_steps_cost(self):
        made = joint.job(dp=DP(1.0, 1.0))
        with made.local() as run:
            assert run.privacy(1e-5).epsilon == 0.0
            run.train_epoch()
            assert run.privacy(1e-5) == made.privacy(1, 1e-5)
            run.step()
            assert run.privacy(1e-5) == made.privacy(2, 1e-5)

    def test_it_says_what_is_not_covered(self):
        said = str(joint.job(dp=DP(1.0, 1.0)).privacy(1, 1e-5))
        assert "'loss' of each step, which all learns" in said and "evaluation 'error'" in said and "guard" not in said
        assert "nothing else is revealed" in str(
            joint.job(dp=DP(1.0, 1.0), reveal=None, evaluate=None).privacy(1, 1e-5)
        )


class TestInfluence:
    def test_statistics_of_batch_normalization_are_named(self):
        model = nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def step(bank, shop, label):
            optimizer.zero_grad()
            F.mse_loss(model(torch.cat([bank, shop], 1)).squeeze(1), label).backward()
            optimizer.step()

        job = training.compile_training(
            step, model, optimizer, batch=joint.table().batches(16), parties=PARTIES, dp=DP(1.0, 1.0), guard_every=5
        )
        assert job.influence.states == ("model.1.running_mean", "model.1.running_var") and job.influence.gradients == 1
        found = job._uncovered(job.influence)
        assert any("model.1.running_var, a buffer" in what for what in found) and any("guard" in what for what in found)

    def test_gradients_that_are_carried_over_are_refused(self):
        model = nn.Linear(7, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def step(bank, shop, label):
            F.mse_loss(model(torch.cat([bank, shop], 1)).squeeze(1), label).backward()
            optimizer.step()

        batch = joint.table().batches(16)
        training.compile_training(step, model, optimizer, batch=batch, parties=PARTIES)
        with pytest.raises(CompileError, match=r"model\.\w+\.grad"):
            training.compile_training(step, model, optimizer, batch=batch, parties=PARTIES, dp=DP(1.0, 1.0))

    def test_a_generator_sees_rows_through_a_noisy_discriminator_only(self):
        draw, judge = nn.Linear(2, 4), nn.Linear(4, 1)
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (draw, judge)]

        def step(rows):
            made = draw(torch.randn(len(rows), 2))
            optimizers[1].zero_grad()
            (F.softplus(-judge(rows)).mean() + F.softplus(judge(made.detach())).mean()).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            F.softplus(-judge(made)).mean().backward()
            optimizers[0].step()
            return {"made": made, "real": judge(rows).mean()}

        rows = training.dataset(rows=training.owned("bank", torch.randn(32, 4)))
        job = training.compile_training(
            step,
            [draw, judge],
            optimizers,
            batch=rows.batches(8),
            parties=["bank", "shop"],
            reveal="shop",
            dp=DP(1.0, 1.0),
        )
        assert job.influence.gradients == 1 and job.influence.returned == ("real",)
        assert [drawn.count for drawn in job.captured.noise] == [5, 5, 12, 12]
        assert influence(job.captured) == job.influence

    def test_a_second_step_on_the_same_rows_counts_twice(self):
        model = nn.Linear(7, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def step(bank, shop, label):
            for _ in range(2):
                optimizer.zero_grad()
                F.mse_loss(model(torch.cat([bank, shop], 1)).squeeze(1), label).backward()
                optimizer.step()

        job = training.compile_training(
            step, model, optimizer, batch=joint.table().batches(16), parties=PARTIES, dp=DP(1.0, 1.0)
        )
        assert job.influence.gradients == 2 and len(job.captured.noise) == 6
        pytest.importorskip("dp_accounting")
        assert job.privacy(3, 1e-5).compositions == 6


class TestRefusals:
    def test_numbers(self):
        for norm in (0.0, -1.0, 2.0**-7, 100.0, math.nan):
            with pytest.raises(InputError, match="max_grad_norm"):
                DP(1.0, norm)
        for multiplier in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(InputError, match="noise_multiplier"):
                DP(multiplier, 1.0)
        with pytest.raises(InputError, match="delta"):
            joint.job(dp=DP(1.0, 1.0)).privacy(1, 1.0)

    def test_what_dp_does_not_go_with(self):
        for options in ({"frac_bits": 12}, {"width": 48}):
            with pytest.raises(CompileError, match="frac_bits=16 and width=64"):
                joint.job(dp=DP(1.0, 1.0), **options)
        with pytest.raises(CompileError, match="dp is not for protocol 'paillier'"):
            joint.job(dp=DP(1.0, 1.0), protocol="paillier")
        with pytest.raises(InputError, match="has no differential privacy"):
            joint.job().privacy(1, 1e-5)

    def test_without_the_library_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "dp_accounting", None)
        with pytest.raises(InputError, match=r"pip install 'securemodel\[privacy\]'"):
            joint.job(dp=DP(1.0, 1.0)).privacy(1, 1e-5)


def test_parties_that_do_not_agree_on_the_noise_stop():
    made = iter([DP(1.0, 1.0), DP(1.0, 1.0), DP(0.1, 1.0)])
    results = joint.together(dict.fromkeys(PARTIES, lambda run: run.step()), lambda: joint.job(dp=next(made)))
    assert any(isinstance(result, Mismatch) and "different dp" in str(result) for result in results.values()), results
    assert not any(isinstance(result, dict) for result in results.values()), results


def test_parties_in_processes_of_their_own_add_their_own_noise():
    task = lambda run: (float(run.step()["loss"]), run.export(to="shop"))
    results = joint.together(dict.fromkeys(PARTIES, task), lambda: joint.job(dp=DP(1.0, 1.0)))
    with joint.job(dp=QUIET).local() as run:
        loss, weights = task(run)
    assert {said for said, _ in results.values()} == {loss}
    assert (results["shop"][1]["weight"] - weights["weight"]).abs().max() > 1e-3


def test_an_audit_calls_noise_by_its_name():
    found = audit(joint.job(dp=QUIET).program)
    for role in found.roles[: len(PARTIES)]:
        assert any(what.startswith("noise of differential privacy [8]") for what in role.brings), role.brings
        assert sum(what.startswith("input ") for what in role.brings) == 1, role.brings
    assert any(said.startswith("number optimizer.groups.0.lr of each step") for said in found.by_design)
