"""`python -m benchmarks.linear [--json FILE]`: a logistic regression trained with Paillier, beside the same with phe.

Breast cancer (569 rows, 15 columns each at two parties, labels at the second), batches of 128: both parties as
processes of one thread over loopback with TLS. An epoch is its steps from the first message to the new shares; keys are
made before. Seconds of the processor tell how much work there is where other programs run beside.

phe 1.5.0 with gmpy2 computes the same protocol in one process, one step as plain loops would have it: an encryption for
each number, no packing, no multi-exponentiation. Its epoch is the steps of an epoch times half of that step, as if both
parties computed at once and messages took no time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.cases import PARTIES
from benchmarks.measure import machine, write_configuration
from protocols import identity
from securemodel import training
from securemodel.training.paillier import LinearTraining, float_step

BATCH, RATE = 128, 0.125


def tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Standardized columns, in a fixed order of rows, and labels."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import StandardScaler

    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = StandardScaler().fit_transform(x)[order]
    return torch.from_numpy(x).float(), torch.from_numpy(y[order]).float()[:, None]


def make_job(bits: int) -> tuple[LinearTraining, Any, nn.Module]:
    """The training, its step in ordinary PyTorch, and the model of that step."""
    x, y = tables()
    own, (first, second) = training.owned, PARTIES
    data = training.dataset(a=own(first, x[:, :15]), b=own(second, x[:, 15:]), y=own(second, y))
    model = nn.Linear(30, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step(a, b, y):
        loss = F.binary_cross_entropy_with_logits(model(torch.cat([a, b], 1)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    batches = data.batches(BATCH, seed=1)
    job = training.compile_training(
        step, model, optimizer, batch=batches, parties=PARTIES, protocol="paillier", key_bits=bits
    )
    return job, step, model


def party(folder: str, bits: str, epochs: str, me: str) -> None:
    """One party of a measurement; writes what it saw."""
    torch.set_num_threads(1)
    config = identity.load_config(Path(folder) / f"{me}.toml", require_certificates=True)
    job, *_ = make_job(int(bits))
    with job.connect(me, config, ledger=False) as run:
        run._start()
        seconds, busy, sent = [], [], []
        for _ in range(int(epochs)):
            start, computed, before = time.perf_counter(), time.process_time(), run._where.session.channel.stats
            run.train_epoch()
            seconds.append(time.perf_counter() - start)
            busy.append(time.process_time() - computed)
            sent.append(run._where.session.channel.stats.sent_bytes - before.sent_bytes)
        weights = run.export(to=me if me == PARTIES[0] else PARTIES[0])
    report = {"seconds": seconds, "busy_seconds": busy, "sent_bytes": sent}
    if weights is not None:
        report["weights"] = [*weights["weight"][0].tolist(), float(weights["bias"][0])]
    (Path(folder) / f"{me}.json").write_text(json.dumps(report))


def measured(bits: int, epochs: int) -> dict[str, Any]:
    """Seconds and bytes of each epoch, and how good the weights are."""
    with tempfile.TemporaryDirectory() as folder:
        write_configuration(Path(folder), True)
        command = [sys.executable, "-m", "benchmarks.linear", "--party", folder, str(bits), str(epochs)]
        started = [subprocess.Popen([*command, me]) for me in PARTIES]
        if any(process.wait() for process in started):
            raise RuntimeError("a party failed")
        reports = [json.loads((Path(folder) / f"{me}.json").read_text()) for me in PARTIES]
    job, step, model = make_job(bits)
    right = job.program.start()
    for n in range(epochs * job.batches.steps_per_epoch):
        batch = job.batches.inputs(n, lambda name: True)
        step(*batch)
        right, _ = float_step(job.program, right, batch, RATE)
    x, y = tables()
    accuracy = lambda w: float(((x.double().numpy() @ w[:30] + w[30] > 0) == (y[:, 0].numpy() > 0)).mean())
    weights = np.array(reports[0]["weights"])
    sigmoid = np.append(model.weight.detach().double().numpy()[0], model.bias.detach().double().numpy())
    return {
        "seconds": [max(pair) for pair in zip(*(r["seconds"] for r in reports), strict=True)],
        "busy_seconds": [max(pair) for pair in zip(*(r["busy_seconds"] for r in reports), strict=True)],
        "sent_bytes": [max(pair) for pair in zip(*(r["sent_bytes"] for r in reports), strict=True)],
        "difference": float(np.abs(weights - right[:, 0]).max()),
        "accuracy": accuracy(weights), "accuracy_of_the_sigmoid": accuracy(sigmoid),
        "steps": job.batches.steps_per_epoch,
    }  # fmt: skip


@click.command()
@click.option("--bits", default=2048, show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--phe-rows", default=0, help="Rows of the batch that phe computes, scaled up to all; 0 for all.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Save the figures here.")
@click.option("--party", nargs=4, hidden=True, help="Folder, bits, epochs and name: one party of a measurement.")
def main(bits: int, epochs: int, phe_rows: int, json_file: Path | None, party: tuple[str, ...] | None) -> None:
    """Trains a logistic regression with TLS, and a step of the same with python-paillier."""
    if party:
        _party(*party)
        return
    from benchmarks.peers.phe_training import step_seconds

    ours = measured(bits, epochs)
    job, *_ = make_job(bits)
    theirs, busy = (spent / 2 * ours["steps"] for spent in step_seconds(job, bits, phe_rows))
    print(f"{machine()}, {bits} bits, {ours['steps']} steps of {BATCH} rows")
    shown = lambda times: ", ".join(f"{s:.2f}" for s in times)
    print(f"seconds of each epoch: {shown(ours['seconds'])}; sent by a party: {ours['sent_bytes']} bytes")
    print(f"seconds of the processor, the busier party: {shown(ours['busy_seconds'])}")
    print(f"phe 1.5.0 with gmpy2: {theirs:.1f} s, {theirs / ours['seconds'][0]:.1f} times the first epoch")
    print(f"of the processor: {busy:.1f} s, {busy / ours['busy_seconds'][0]:.1f} times the first epoch")
    print(f"weights differ from float with the same polynomial by {ours['difference']:.1e}")
    print(f"accuracy {ours['accuracy']:.4f}, with the sigmoid {ours['accuracy_of_the_sigmoid']:.4f}")
    if json_file:
        json_file.write_text(
            json.dumps({**ours, "phe_epoch_seconds": theirs, "phe_busy_seconds": busy, "machine": machine()}, indent=1)
        )


_party = party

if __name__ == "__main__":
    main()
