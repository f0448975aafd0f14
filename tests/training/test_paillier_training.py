"""Training with Paillier alone: beside integers and floats in the clear, between processes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from protocols.channel.testing import free_addresses, run_together
from protocols.errors import BadFrame, InputError, Mismatch, PeerAborted
from protocols.identity import Timeouts, plain_config
from securemodel import training
from securemodel.engines.paillier import trainer as trainer_module
from securemodel.engines.paillier.linear_step import LinearStep, sigmoid_coefficients
from securemodel.errors import CompileError
from securemodel.ledger import read_ledger
from securemodel.training.paillier import LinearTraining, float_step

ROWS, PARTIES, LIMIT_S, UNIT = 48, ["bank", "shop"], 60.0, 2.0**-20


def table(outputs: int = 1, kind: str = "logistic", scale: float = 1.0, rows: int = ROWS):
    generator = torch.Generator().manual_seed(3)
    bank, shop = (scale * torch.randn(rows, n, generator=generator) for n in (4, 3))
    scores = torch.cat([bank, shop], 1) @ torch.randn(7, outputs, generator=generator)
    y = (scores > 0).float() if kind == "logistic" else scores
    own = training.owned
    return training.dataset(bank=own("bank", bank), shop=own("shop", shop), y=own("shop", y))


def made(kind: str = "logistic", outputs: int = 1, data: Any = None, lr: float = 0.1, decay: float = 0.01, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(7, outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)
    loss_of = F.binary_cross_entropy_with_logits if kind == "logistic" else F.mse_loss

    def step(bank, shop, y):
        loss = loss_of(model(torch.cat([bank, shop], 1)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    given = {
        "batch": (data or table(outputs, kind)).batches(16, seed=2), "parties": PARTIES, "protocol": "paillier",
        "insecure_key_bits": 512,
    }  # fmt: skip
    return training.compile_training(step, model, optimizer, **{**given, **options}), optimizer, step, model


def in_float(job: LinearTraining, steps: int, lr: float = 0.1) -> np.ndarray:
    """float64[columns, outputs] after steps with the same polynomial."""
    weights = job.program.start()
    for n in range(steps):
        weights, _ = float_step(job.program, weights, job.batches.inputs(n, lambda name: True), lr)
    return weights


def of(run: Any) -> np.ndarray:
    """The weights in shares, added up."""
    return sum(trainer.share for trainer in run._where.parties.values()).astype(float) * UNIT


class TestSteps:
    @pytest.mark.parametrize(("kind", "outputs"), [("logistic", 1), ("logistic", 3), ("linear", 1), ("linear", 2)])
    def test_weights_are_those_of_float_with_the_same_polynomial(self, kind, outputs):
        job = made(kind, outputs)[0]
        with job.local() as run:
            run.train_epoch()
            assert np.abs(of(run) - in_float(job, 3)).max() < 2**-15

    @pytest.mark.parametrize("degree", [1, 9])
    def test_other_degrees(self, degree):
        job = made(degree=degree)[0]
        with job.local() as run:
            run.train_epoch()
            assert np.abs(of(run) - in_float(job, 3)).max() < 2**-15

    def test_a_linear_model_is_trained_as_pytorch_does(self):
        job, _, step, model = made("linear", 2)
        with job.local() as run:
            run.train_epoch()
            weights = run.export(to="bank")
        for n in range(3):
            step(*job.batches.inputs(n, lambda name: True))
        for name, tensor in model.state_dict().items():
            assert (weights[name] - tensor).abs().max() < 2**-14

    def test_a_step_is_that_of_integers_but_for_its_roundings(self):
        job = made()[0]
        shape, attrs = job.program.shape, job.program.attrs
        batch = job.batches.inputs(0, lambda name: True)
        x = torch.cat([job.program.columns_of(name, batch) for name in PARTIES], 1).numpy()
        x, y = np.rint(x * 2**16).astype(object), np.rint(batch[2].double().numpy() * 2**16).astype(object)
        with job.local() as run:
            run._start()
            before = sum(trainer.share for trainer in run._where.parties.values())
            run.step()
            after = sum(trainer.share for trainer in run._where.parties.values())
        x, before = (np.vectorize(int, otypes=[object])(a) for a in (x, before))
        t = x.dot(before) / 2 ** (36 - 16 + 4)
        slope = max(abs(c) for c in shape.coefficients) / 2 ** (16 * 5) * 3  # of p, in t below 1, above its true one
        p = sum(c * t**k for k, c in enumerate(shape.coefficients)) / 2.0**shape.polynomial_shift + 2**15
        gradient = x.T.dot(p - y)
        rate = 0.1 * attrs["factor"] * 2.0 ** (20 - 32)
        right = before - rate * gradient - 0.1 * attrs["decay"] * before
        bound = rate * np.abs(x).sum(0).max() * (slope + 1) + 1.1
        assert np.abs((after - right).astype(float)).max() < bound < 40

    def test_the_order_of_columns_is_the_models(self):
        data = table()
        model = nn.Linear(7, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(bank, shop, y):
            loss = F.mse_loss(model(torch.cat([shop, bank], dim=-1)), y, reduction="sum") / 16
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        job = training.compile_training(
            step, model, optimizer, batch=data.batches(16), parties=PARTIES, protocol="paillier", insecure_key_bits=512
        )
        with job.local() as run:
            run.step()
            weights, parts = run.export(to="shop"), run.export(to="each")
        step(*job.batches.inputs(0, lambda name: True))
        assert (weights["weight"] - model.weight).abs().max() < 2**-14 and "bias" not in weights
        assert torch.equal(torch.cat([parts["shop"]["weight"], parts["bank"]["weight"]], 1), weights["weight"])

    def test_a_linear_model_is_the_only_one_and_is_not_published(self):
        job, _, _, model = made()
        with job.local() as run:
            whole = run.export(to="bank")
            assert torch.equal(run.export(to="bank", only="model")["weight"], whole["weight"])
            with pytest.raises(InputError, match="no model 'other'"):
                run.export(to="bank", only="other")
            with pytest.raises(InputError, match="no publish"):
                run.publish(model, torch.zeros(4, 7), inputs="bank", outputs="bank")
            run.step()

    def test_a_schedule_and_more_than_one_epoch(self):
        job, optimizer, *_ = made()
        with job.local() as run:
            for _ in run.epochs(2, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)):
                run.train_epoch()
            weights = in_float(job, 3)
            for n in range(3, 6):
                weights, _ = float_step(job.program, weights, job.batches.inputs(n, lambda name: True), 0.05)
            assert np.abs(of(run) - weights).max() < 2**-15

    def test_costs_are_those_of_the_plan(self):
        job = made()[0]
        plan, sent = job.plan("local"), []
        with job.local() as run:
            for _ in range(4):
                run.step()
                stats = run._where.session.stats
                sent.append(stats.sent_bytes)
                assert stats.rounds == plan.rounds == 6
        assert sent[0] == plan.first_epoch_bytes and sent[3] == plan.sent_bytes, "rows are sent once"
        assert "dealer" in str(plan) and "cheaper: " in str(plan)

    def test_a_batch_of_other_rows(self):
        job = made()[0]
        with job.local() as run:
            run.step()
            weights, _ = float_step(job.program, in_float(job, 1), (batch := job.batches.inputs(0, bool)), 0.1)
            run.step(*[-x if at < 2 else x for at, x in enumerate(batch)])
            wrong = of(run)
            weights = in_float(job, 1)
            weights, _ = float_step(job.program, weights, [-batch[0], -batch[1], batch[2]], 0.1)
            assert np.abs(wrong - weights).max() < 2**-15


class TestSecrecy:
    def test_a_share_tells_nothing_and_is_in_no_repr(self):
        job = made()[0]
        with job.local() as run:
            run.train_epoch()
            for trainer in run._where.parties.values():
                assert np.abs(trainer.share.astype(float)).min() > 2.0**55, "40 bits more than a gradient has"
                texts = repr(trainer) + repr(run) + repr(job) + repr(run._where.session)
                assert not any(str(abs(v)) in texts for v in trainer.share.reshape(-1))

    def test_masks_are_fresh_in_every_run(self):
        shares = []
        for _ in range(2):
            with made()[0].local() as run:
                run.step()
                shares.append(run._where.parties["bank"].share)
        assert not (shares[0] == shares[1]).any()

    def test_the_guard_is_the_sum_of_squares_and_in_the_ledger(self, tmp_path):
        results = together(
            lambda run: (run.train_epoch(), run.guards)[1], {"guard_every": 2}, ledger=tmp_path / "ledger"
        )
        job = made(guard_every=2)[0]
        right = {}
        for n in (0, 2):
            _, scores = float_step(job.program, in_float(job, n), job.batches.inputs(n, lambda name: True), 0.1)
            right[n + 1] = float(((scores / 16) ** 2).sum())
        for guards in results.values():
            assert guards == pytest.approx(right, abs=1e-3)
        lines = read_ledger(tmp_path / "ledger").lines
        assert lines and all(line.fields["reveals"] == {"all": ["sum of squared scores"]} for line in lines)


class TestRanges:
    @pytest.mark.parametrize(("kind", "beyond"), [("logistic", 2.0**7), ("linear", 2.0**20)])
    def test_at_the_edge_of_all_ranges_and_beyond_nothing_wraps(self, kind, beyond):
        """Inputs at their limit; scores at theirs, and as far beyond it as the 40 bits of masks allow."""
        data = table(kind=kind)
        for column in data.columns.values():
            column[0].tensor.sign_()
        data.columns["bank"][0].tensor.mul_(16)
        data.columns["shop"][0].tensor.mul_(16)
        for size, lr in ((128 / 112, 1e-3), (beyond * 128 / 112, 2.0**-30)):
            job, *_ = made(kind, data=data, lr=lr, decay=0.0)
            job.program.starts["weight"] = torch.full((1, 7), size)
            with job.local() as run:
                run.step()
                right = in_float(job, 1, lr)
                assert np.abs(of(run) - right).max() <= 2**-12 * np.abs(right).max()

    def test_shares_are_within_what_the_step_says(self):
        shape = LinearStep("logistic", 16, (4, 4), 1, 5, 4, 16.0, 128.0, 512)
        assert shape.score_share_bits == 44 + 40 + 2 - 24 and shape.weight_share_bits < 128
        job = made()[0]
        with job.local() as run:
            run.train_epoch()
            most = job.program.shape.weight_share_bits - 24
            assert all(abs(v) >> most == 0 for t in run._where.parties.values() for v in t.share.reshape(-1))

    def test_an_input_beyond_its_limit_is_named_by_its_owner_alone(self):
        data = table()
        data.columns["bank"][0].tensor[5, 0] = 17
        results = together(lambda run: run.step(), {"data": data})
        assert isinstance(results["bank"], InputError) and "'bank': column 'bank', row 5" in str(results["bank"])
        assert "17" not in str(results["bank"]) and isinstance(results["shop"], PeerAborted)

    def test_a_rate_out_of_range(self):
        with made(lr=100.0)[0].local() as run, pytest.raises(InputError, match="learning rate"):
            run.step()


def breast_cancer():
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import StandardScaler

    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = StandardScaler().fit_transform(x)[order], y[order]
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()[:, None]


def cancer_job(**options):
    x, y = breast_cancer()
    own = training.owned
    data = training.dataset(bank=own("bank", x[:, :15]), shop=own("shop", x[:, 15:]), y=own("shop", y))
    model = nn.Linear(30, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)

    def step(bank, shop, y):
        loss = F.binary_cross_entropy_with_logits(model(torch.cat([bank, shop], 1)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return training.compile_training(
        step, model, optimizer, batch=data.batches(128, seed=1), parties=PARTIES, protocol="paillier",
        insecure_key_bits=512, **options,
    ), model, step  # fmt: skip


class TestBreastCancer:
    @pytest.mark.parametrize("epochs", [1, pytest.param(8, marks=pytest.mark.slow)])
    def test_weights_within_2_to_the_minus_12_and_the_sigmoids_accuracy(self, epochs):
        job, model, step = cancer_job()
        with job.local() as run:
            for _ in run.epochs(epochs):
                run.train_epoch()
            weights = run.export(to="bank")
            steps = run.step_number
            assert np.abs(of(run) - in_float(job, steps, 0.125)).max() < 2**-12
        for n in range(steps):
            step(*job.batches.inputs(n, lambda name: True))
        x, y = breast_cancer()
        accuracy = lambda w, b: float((((x @ w.T + b) > 0).float() == y).float().mean())
        ours, sigmoids = accuracy(weights["weight"], weights["bias"]), accuracy(model.weight, model.bias)
        assert ours > 0.9 and ours > sigmoids - 0.005

    def test_the_usual_cubic_diverges_and_the_degrees_on_offer_do_not(self):
        x, y = (part.double().numpy() for part in breast_cancer())

        def largest(degree: int, interval: float) -> float:
            weights, c = np.zeros((30, 1)), sigmoid_coefficients(degree, interval)
            for n in range(20 * 4):
                rows = slice(n % 4 * 128, n % 4 * 128 + 128)
                z = x[rows] @ weights
                p = 0.5 + sum(a * (z / interval) ** k for k, a in zip(range(1, degree + 1, 2), c, strict=True))
                weights = weights - 0.125 / 128 * x[rows].T @ (p - y[rows])
                if not np.abs(z).max() < 1e6:
                    return float("inf")
            return np.abs(x @ weights).max()

        assert largest(3, 8.0) > 1e3 and largest(7, 8.0) > 1e3
        assert max(largest(degree, 16.0) for degree in (1, 5, 9)) < 40
        with pytest.raises(InputError, match="diverges"):
            cancer_job(degree=3)

    def test_the_simulation_says_so(self):
        job, *_ = cancer_job()
        said = job.simulate(8)
        assert not said.diverges and 1 < max(said.largest) < 40 and said.difference < 0.2 and "stayed" in str(said)
        assert cancer_job(score_limit=16.0)[0].simulate(8, lambda n: [9 * torch.ones(128, 15)] * 2 + [torch.ones(128, 1)]).diverges  # fmt: skip


class TestCheckpoints:
    def test_a_resumed_training_goes_on_with_the_same_weights(self, tmp_path):
        with made()[0].local() as run:
            assert run.resume(tmp_path) == 0
            run.train_epoch()
            run.checkpoint(tmp_path)
            before = of(run)
        with made()[0].local() as run:
            assert run.resume(tmp_path) == 3
            assert np.array_equal(of(run), before)
            run.step()
            assert np.abs(of(run) - in_float(run.job, 4)).max() < 2**-15

    def test_shares_of_any_size_are_kept(self):
        with made()[0].local() as run:
            run._start()
            trainer = run._where.parties["bank"]
            bits = trainer.shape.weight_share_bits
            for value in (0, -1, 1, (1 << bits) - 1, -(1 << bits), (1 << 62) - 1, -(1 << 62), 1 << 62):
                trainer.share = np.array([[value]] * 8, dtype=object)
                kept = trainer.kept
                trainer.share = None
                trainer.kept = kept
                assert (trainer.share == value).all()

    def test_export_is_what_torch_loads(self, tmp_path):
        job, _, _, model = made()
        with job.local() as run:
            run.step()
            run.export(tmp_path / "model.safetensors", to="shop")
            whole = of(run)
        model.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
        assert np.abs(model.weight.detach().numpy()[0] - whole[:7, 0]).max() < 1e-6


# ---- between processes
def together(task: Any, options: Any = None, **connect: Any) -> dict[str, Any]:
    """Both parties' ends of a run, each in a thread, over sockets of this host. No dealer is there."""
    addresses = free_addresses(2)
    times = Timeouts(connect_s=60.0, receive_s=60.0)
    config = plain_config(dict(zip(PARTIES, addresses, strict=True)), timeouts=times)
    given = {me: options.get(me, options) if options else {} for me in PARTIES}
    jobs = {me: made(**given[me])[0] for me in PARTIES}  # here: torch's seed and its capture belong to all threads

    def party(me: str) -> Any:
        with jobs[me].connect(me, config, insecure_plain=True, **{"ledger": False, **connect}) as run:
            return task(run)

    return run_together({me: lambda me=me: party(me) for me in PARTIES}, LIMIT_S)


def test_parties_in_processes_of_their_own(tmp_path):
    def task(run) -> Any:
        run.resume(tmp_path)
        run.train_epoch()
        run.checkpoint(tmp_path)
        return run.export(to="shop"), run.export(to="each")

    results = together(task)
    right = in_float(made()[0], 3)
    whole, mine = results["shop"]
    assert results["bank"][0] is None and (whole["weight"].numpy()[0] - right[:7, 0]).__abs__().max() < 2**-15
    assert torch.equal(torch.cat([results["bank"][1]["weight"], mine["weight"]], 1), whole["weight"])
    assert torch.equal(mine["bias"], whole["bias"]) and "bias" not in results["bank"][1]
    again = together(lambda run: (run.resume(tmp_path), run.step(), run.export(to="bank"))[::2])
    assert {step for step, _ in again.values()} == {3} and again["shop"][1] is None


def test_another_schedule_or_program_is_a_mismatch():
    results = together(lambda run: run.step(), {"bank": {}, "shop": {"lr": 0.2}})
    assert any(isinstance(r, Mismatch) and "another rate" in str(r) for r in results.values())
    results = together(lambda run: run.step(), {"bank": {}, "shop": {"decay": 0.2}})
    assert all(isinstance(r, (Mismatch, PeerAborted)) for r in results.values())


@pytest.mark.parametrize("node", range(6))
def test_a_message_that_is_none_is_an_error_with_the_peers_name(monkeypatch, node):
    """The shop sends zeros, which are no ciphertexts, in one round after the other."""
    right = trainer_module.Trainer._swap

    def lying(self, label, key, cells, count, digest=b""):
        walk = right(self, label, key, cells, count, digest)
        talk = next(walk)
        if self.me == "shop" and label.node == node:
            sends = {peer: [data[0], bytes(len(b"".join(data[1:])))] for peer, data in talk.sends.items()}
            talk = type(talk)(talk.label, sends, talk.receives)
        got = yield talk
        try:
            walk.send(got)
        except StopIteration as end:
            return end.value

    monkeypatch.setattr(trainer_module.Trainer, "_swap", lying)
    results = together(lambda run: run.step())
    assert isinstance(results["bank"], BadFrame) and "'shop'" in str(results["bank"]), results
    assert node == 5 or isinstance(results["shop"], PeerAborted), "after its last message the shop has no more to hear"


class TestRefusals:
    @pytest.mark.parametrize(
        ("loss", "match"),
        [
            (lambda z, y: F.hinge_embedding_loss(z, y), "paillier"),
            (lambda z, y: F.poisson_nll_loss(z, y), "exp"),
            (lambda z, y: F.l1_loss(z, y), "sgn"),
            (lambda z, y: F.mse_loss(torch.sigmoid(z), y), "paillier"),
            (lambda z, y: F.binary_cross_entropy_with_logits(2 * z, y), "update is not"),
            (lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor([2.0])), "paillier"),
            (lambda z, y: F.mse_loss(z, y) + F.mse_loss(z, -y), "update is not"),
            (lambda z, y: -F.mse_loss(z, y), "up the gradient"),
        ],
    )
    def test_losses(self, loss, match):
        with pytest.raises(CompileError, match=match) as caught:
            compiled(nn.Linear(7, 1), loss)
        assert "protocol='masked'" in str(caught.value)

    def test_models_and_optimizers(self):
        with pytest.raises(CompileError, match="states are"):
            compiled(nn.Sequential(nn.Linear(7, 2), nn.Linear(2, 1)))
        with pytest.raises(CompileError, match="relu"):
            compiled(nn.Sequential(nn.Linear(7, 1), nn.ReLU()))
        with pytest.raises(CompileError, match="momentum"):
            compiled(nn.Linear(7, 1), optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
        with pytest.raises(CompileError, match="Adam"):
            compiled(nn.Linear(7, 1), optimizer=lambda p: torch.optim.Adam(p))
        with pytest.raises(CompileError, match="update is not"):
            compiled(nn.Linear(7, 1), scaled=2.0)

    def test_what_is_asked(self):
        for options, match in (
            ({"reveal": {"loss": "all"}}, "loss is not computed"),
            ({"evaluate": {"error": 1}}, "evaluate="),
            ({"weights": "bank"}, "starting weights"),
            ({"parties": ["bank", "shop", "third"]}, "3 parties"),
            ({"parties": ["bank", "other"]}, "no party"),
            ({"width": 32}, "width"),
            ({"guard_every": -1}, "guard"),
            ({"protocol": "crypten"}, "there is no protocol"),
            ({"protocol": "masked", "insecure_key_bits": 512}, "there is no insecure_key_bits"),
        ):
            with pytest.raises(CompileError, match=match):
                made(**options)
        for options, match in (
            ({"degree": 7}, "diverges"),
            ({"interval": 12}, "power of two"),
            ({"score_limit": 2.0}, "score_limit"),
            ({"key_bits": 1024}, "key_bits"),
            ({"insecure_key_bits": 128}, "do not fit"),
            ({"kind": "linear", "guard_every": 1}, "guard"),
        ):
            with pytest.raises(InputError, match=match):
                made(**options)

    def test_rows_of_two_parties_and_columns_of_one(self):
        own, x = training.owned, torch.zeros(32, 7)
        halves = lambda t: training.rows(a=own("bank", t[:16]), b=own("shop", t[16:]))
        data = training.dataset(bank=halves(x[:, :4]), shop=halves(x[:, 4:]), y=halves(torch.zeros(32, 1)))
        with pytest.raises(CompileError, match="rows of several"):
            made(data=data)
        data = training.dataset(bank=own("bank", x[:, :4]), shop=own("bank", x[:, 4:]), y=own("shop", x[:, :1]))
        with pytest.raises(CompileError, match="'shop' has none"):
            made(data=data)


def compiled(model, loss=F.mse_loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), scaled: float = 1.0):
    sgd = optimizer(model.parameters())

    def step(bank, shop, y):
        value = loss(model(scaled * torch.cat([bank, shop], 1)), y)
        sgd.zero_grad()
        value.backward()
        sgd.step()

    return training.compile_training(
        step, model, sgd, batch=table().batches(16), parties=PARTIES, protocol="paillier", insecure_key_bits=512
    )
