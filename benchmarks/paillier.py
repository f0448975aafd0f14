"""`python -m benchmarks.paillier [--json FILE]`: the Paillier engine beside python-paillier and others.

Both run in this process one after the other: phe with gmpy2 on one thread, as it is made; the engine on --threads
cores. Products are of encrypted integers of 16 bits by signed weights of 16 bits, which both compute exactly. Seconds
are for one operation, of operations on arrays a share of the array's time, of the fastest of several runs: other
programs only add to a time. Making a key takes as long as luck wants, so there it is the mean.

Where `benchmarks/peers/setup.sh he` has built their environment, HEU and TenSEAL are timed after that, in processes of
their own, and a second table puts them beside the engine.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import securemodel
from benchmarks.measure import machine
from benchmarks.models import lenet5
from benchmarks.peers import HE, run_he
from protocols import paillier
from protocols.kernels import residues
from securemodel.engines.paillier.owned_layers import ClientLayers, OwnerLayers


@dataclass(frozen=True)
class Row:
    """One operation: seconds of each side and of other libraries by name, and what was left out of phe's run."""

    bits: int
    operation: str
    ours_s: float
    phe_s: float | None
    note: str = ""
    others_s: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return self.phe_s / self.ours_s if self.phe_s else None


def seconds(work: Callable[[], object], per: int = 1, repeat: int = 3) -> float:
    """Time of the fastest of some runs, divided by the number of operations in one."""
    return min(_times(work, repeat)) / per


def _times(work: Callable[[], object], repeat: int) -> list[float]:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def operations(bits: int, phe: object, rows_768: int, repeat: int) -> list[Row]:
    """All operations at one size of key."""
    rng = np.random.default_rng(0)
    private, out = paillier.generate(bits), []
    start = time.perf_counter()
    _prepare(private)
    tables = time.perf_counter() - start
    theirs, secret = phe.generate_paillier_keypair(n_length=bits)
    numbers = rng.integers(-(2**15), 2**15, 1024)
    few = [int(v) for v in numbers[:20]]

    def row(operation: str, ours: float, other: float | None, note: str = "") -> None:
        out.append(Row(bits, operation, ours, other, note))

    row(
        "key generation", statistics.mean(_times(lambda: paillier.generate(bits), 10)),
        statistics.mean(_times(lambda: phe.generate_paillier_keypair(n_length=bits), 10)),
        f"tables, once per key: {tables:.2f} s",
    )  # fmt: skip
    slow = seconds(lambda: [theirs.encrypt(v) for v in few], len(few))
    for name, key in (("encryption, public key", private.public), ("encryption, key's owner", private)):
        row(name, seconds(lambda k=key: _encrypt(k, numbers), len(numbers), repeat), slow)
    with paillier.BlindingPool(private, len(numbers)) as pool:

        def pooled() -> float:
            pool.wait(len(numbers), 600)
            return seconds(lambda: _encrypt(private, numbers, pool), len(numbers), 1)

        row("encryption, from the pool", min(pooled() for _ in range(repeat)), slow)
    ours, other = _encrypt(private, numbers), [theirs.encrypt(v) for v in few]
    row(
        "addition",
        seconds(lambda: ours + ours, len(numbers), repeat),
        seconds(lambda: [a + a for a in other], len(few)),
    )
    weights = rng.integers(-(2**15), 2**15, len(numbers))
    row(
        "product by 16-bit integers", seconds(lambda: ours * weights, len(numbers), repeat),
        seconds(lambda: [a * int(w) for a, w in zip(other, weights, strict=False)], len(few)),
    )  # fmt: skip
    row(
        "decryption", seconds(lambda: ours.decrypt_integers(private), len(numbers), repeat),
        seconds(lambda: [secret.decrypt(c) for c in other], len(few)),
    )  # fmt: skip
    row("decryption, slots of 128 bits", *_packed_decryption(private, numbers, out[-1].phe_s, repeat))
    for size, measured in ((100, 100), (768, rows_768)):
        row(f"matrix {size}x{size} by vector", *_matvec(private, theirs, secret, size, measured, rng, repeat))
    return out


def _prepare(private: paillier.PrivateKey) -> None:
    """Makes the tables that are otherwise made on first use."""
    private.public.blinding_base, private.public.upper_base, private.blinding_bases, private.halves  # noqa: B018


def _encrypt(key: object, numbers: np.ndarray, pool: object = None) -> paillier.PaillierTensor:
    return paillier.encrypt_array(key, numbers, frac_bits=0, limit=2**15, pool=pool)


def _packed_decryption(key: object, numbers: np.ndarray, phe_s: float, repeat: int) -> tuple[float, float, str]:
    packed = paillier.encrypt_array(key, numbers, frac_bits=0, limit=2**15, slot_bits=128)
    return seconds(lambda: packed.decrypt_integers(key), len(numbers), repeat), phe_s, "per number"


def _matvec(
    private: object, theirs: object, secret: object, size: int, measured: int, rng: np.random.Generator, repeat: int
) -> tuple[float, float, str]:
    """Seconds for W @ c, encryption and decryption left out; of phe, some rows may stand for all."""
    matrix, vector = rng.integers(-(2**15), 2**15, (size, size)), rng.integers(-(2**15), 2**15, size)
    c = _encrypt(private, vector)
    ours = seconds(lambda: matrix @ c, 1, repeat)
    if list((matrix @ c).compressed().decrypt_integers(private)) != (matrix @ vector).tolist():
        raise RuntimeError("the engine's result is wrong")
    d = [theirs.encrypt(int(v)) for v in vector]
    rows, results = matrix[:measured].tolist(), []

    def multiply() -> None:
        row = rows[len(results)]
        results.append(sum((b * w for b, w in zip(d[1:], row[1:], strict=True)), d[0] * row[0]))

    spent = seconds(multiply, 1, measured) * size
    if secret.decrypt(results[-1]) != int(matrix[measured - 1] @ vector):
        raise RuntimeError("phe's result is wrong")
    return ours, spent, f"phe: {size} times the fastest of {measured} rows"


def logistic_regression(bits: int, phe: object, measured: int, repeat: int) -> Row | None:
    """569 rows of 30 features: encrypt all, score with 16-bit weights, decrypt; of phe, some rows stand for all."""
    if not find_spec("sklearn"):
        return None
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    data = load_breast_cancer()
    x = StandardScaler().fit_transform(data.data)
    model = LogisticRegression().fit(x, data.target)
    weights, bias = model.coef_.T, model.intercept_
    private = paillier.generate(bits)
    _prepare(private)
    scale, limit, most = 13, 4.0, 16.0
    width = paillier.slot_bits_for(most, 13, limit, scale, x.shape[1], limit)
    scores = None

    def ours() -> None:
        nonlocal scores
        rows = paillier.encrypt_array(private, x, 13, most, slot_bits=width)
        request = paillier.read(paillier.write(rows, "rows"), private.public, "rows")
        scored = request.matmul(weights, scale, limit).add(bias, limit)
        scores = paillier.read(paillier.write(scored, "scores"), private.public, "scores").decrypt(private)

    spent = seconds(ours, 1, repeat)
    if np.abs(scores - (x @ weights + bias)).max() > 0.02:
        raise RuntimeError("the engine's scores are wrong")
    theirs, secret = phe.generate_paillier_keypair(n_length=bits)
    rows = iter(x[:measured].tolist())

    def one_row() -> None:
        encrypted = [theirs.encrypt(v) for v in next(rows)]
        score = sum((e * w for e, w in zip(encrypted, weights[:, 0].tolist(), strict=True)), theirs.encrypt(0.0))
        secret.decrypt(score + float(bias[0]))

    other = seconds(one_row, 1, measured) * len(x)
    return Row(bits, "logistic regression 569x30", spent, other, f"phe: {len(x)} times the fastest of {measured} rows")


def lenet(bits: int, repeat: int) -> Row:
    """LeNet-5 on one image: linear layers by the Paillier gate, the rest by the masked engine; all in this process.

    The note says where the time of the gates goes, which need no input; the rest is online.
    """
    model, image = lenet5().eval(), torch.rand(1, 1, 28, 28)
    names = {"weights": "server", "inputs": "client", "outputs": "client"}
    program = securemodel.compile(model, image, protocol="paillier", key_bits=bits, **names)
    spent: dict[str, list[float]] = {"client encrypts": [], "server computes": [], "client decrypts": []}
    steps = ((ClientLayers, "request"), (OwnerLayers, "reply"), (ClientLayers, "finish"))
    with securemodel.local(program) as session, torch.no_grad(), ExitStack() as stack:
        for (side, name), times in zip(steps, spent.values(), strict=True):
            stack.enter_context(_timed(side, name, times))
        made = session.run(image)
        whole = seconds(lambda: session.run(image), 1, repeat)
        if (made - model(image)).abs().max() > 0.01:
            raise RuntimeError("the engine's result is wrong")
    parts = {name: min(times[1:]) for name, times in spent.items()}
    note = ", ".join(f"{name} {_time(took)}" for name, took in parts.items())
    return Row(bits, "LeNet-5, one image", whole, None, f"{note}, online {_time(whole - sum(parts.values()))}")


@contextmanager
def _timed(side: type, name: str, times: list[float]) -> Iterator[None]:
    """Notes how long each call of a method takes."""
    method = getattr(side, name)

    def timed(*args: object) -> object:
        start = time.perf_counter()
        try:
            return method(*args)
        finally:
            times.append(time.perf_counter() - start)

    setattr(side, name, timed)
    try:
        yield
    finally:
        setattr(side, name, method)


def show(rows: list[Row]) -> None:
    """The table."""
    kind = {8: "AVX-512 kernels", 1: "portable kernels", 0: "GMP integers"}[residues.lanes()]
    table = Table(title=f"seconds per operation, phe 1.5.0 and {kind} on {torch.get_num_threads()} cores; {machine()}")
    for name in ("bits", "operation", "ours", "phe", "times faster", "note"):
        table.add_column(name, justify="left" if name in ("operation", "note") else "right")
    for before, row in zip([None, *rows], rows, strict=False):
        if before and before.bits != row.bits:
            table.add_section()
        ratio = f"{row.ratio:.1f}" if row.ratio else "–"
        table.add_row(str(row.bits), row.operation, _time(row.ours_s), _time(row.phe_s), ratio, row.note)
    Console(width=140).print(table)


def beside(rows: list[Row], others: list[dict[str, Any]]) -> list[Row]:
    """The rows with the seconds of other libraries; a scheme without bits of a key stands beside every size."""

    def found(row: Row) -> dict[str, float]:
        return {
            _name(other): other["operations"][row.operation]
            for other in others
            if other["bits"] in (row.bits, None) and row.operation in (other["operations"] or {})
        }

    return [replace(row, others_s=found(row)) for row in rows]


def _name(other: dict[str, Any]) -> str:
    return f"{other['system']}, {other['scheme']}"


def show_others(rows: list[Row], others: list[dict[str, Any]], measured: int) -> None:
    """The second table: operations that other libraries have too; below it errors, and what went wrong there."""
    names = list(dict.fromkeys(map(_name, others)))
    title = (
        f"seconds per operation; HEU's 768x768 is computed from {measured} rows; CKKS is approximate, for one number "
        "a share of a full ciphertext, at 128 bits of security whatever the bits of the key"
    )
    table = Table(title=title)
    for name in ("bits", "operation", "ours", *names):
        table.add_column(name, justify="left" if name == "operation" else "right")
    compared = [row for row in rows if row.others_s]
    for before, row in zip([None, *compared], compared, strict=False):
        if before and before.bits != row.bits:
            table.add_section()
        theirs = (_time(row.others_s.get(name)) for name in names)
        table.add_row(str(row.bits), row.operation, _time(row.ours_s), *theirs)
    console = Console(width=140)
    console.print(table)
    for other in others:
        if other["error"]:
            console.print(f"{_name(other)}: results are off by up to {other['error']:.0e}", markup=False)
        if other["problem"]:
            console.print(f"{_name(other)}, {other['bits'] or 'any'} bits: {other['problem']}", markup=False)


def _time(value: float | None) -> str:
    if value is None:
        return "–"
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
    unit, scale = next((pair for pair in units if value >= pair[1]), units[-1])
    return f"{value / scale:.2f} {unit}"


@click.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Save the rows here.")
@click.option("--bits", multiple=True, type=int, default=(2048, 3072), show_default=True)
@click.option("--threads", default=0, help="Cores for the engine; all by default.")
@click.option("--repeat", default=3, show_default=True, help="Timed runs of each of our operations.")
@click.option(
    "--phe-rows", default=8, show_default=True,
    help="Rows of the 768x768 product and of the data that phe computes; HEU as many of the product.",
)  # fmt: skip
def main(json_file: Path | None, bits: tuple[int, ...], threads: int, repeat: int, phe_rows: int) -> None:
    """Times key generation, encryption, sums, products, matrix products, a logistic regression and a network."""
    if not find_spec("phe"):
        raise click.UsageError(
            "this compares with python-paillier: pip install phe gmpy2 (phe is under the GPL version 3)"
        )
    from phe import paillier as phe

    if threads:
        torch.set_num_threads(threads)
    rows = []
    for size in bits:
        rows += operations(size, phe, phe_rows, repeat)
        last = logistic_regression(size, phe, phe_rows, repeat)
        rows += [last] if last else []
        rows.append(lenet(size, repeat))
    show(rows)
    _save(json_file, rows)  # what follows may fail
    others = run_he(bits, repeat=repeat, rows=phe_rows, threads=threads)
    if others:
        rows = beside(rows, others)
        show_others(rows, others, phe_rows)
        _save(json_file, rows)
    elif not HE.is_built:
        print("For HEU and TenSEAL beside these, run benchmarks/peers/setup.sh he first.")


def _save(json_file: Path | None, rows: list[Row]) -> None:
    if json_file:
        json_file.write_text(json.dumps([{**asdict(row), "ratio": row.ratio} for row in rows], indent=1))


if __name__ == "__main__":
    main()
