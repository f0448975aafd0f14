"""Times SecretFlow HEU (Paillier and Okamoto-Uchiyama) and TenSEAL (CKKS), each where it is installed.

Runs in .venv-he:  .venv-he/bin/python benchmarks/peers/he_runner.py --bits 2048,3072 --out he.json

A row says the system, the scheme, the bits of the key (None for CKKS, whose parameters are below), the seconds of each
operation by its name in the table of `benchmarks.paillier`, the largest error, and why it failed where it did. Data,
weights and ways of timing are those of that table: numbers and weights of 16 bits, the fastest of several runs, of
operations on arrays a share of the array's time. Encoding is inside, as it is there. HEU takes as many threads as it
likes. CKKS is approximate and computes on 4096 numbers in one ciphertext, so its shares are of a full one, and its
numbers are scaled to below 1; a matrix product takes one vector, however empty that leaves the ciphertext.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, run_all, run_children

MODULES = {"sf-heu": "heu", "tenseal": "tenseal"}
SCHEMES = {"Paillier": ("sf-heu", "ZPaillier"), "Okamoto-Uchiyama": ("sf-heu", "OU"), "CKKS": ("tenseal", "CKKS")}
NUMBERS, FEW, SIZES, TOP = 1024, 100, (100, 768), 2**15
# The least of SEAL's degrees that has 128 bits of security with room for one product at a scale of 2^40
DEGREE, MODULI, SCALE_BITS = 8192, (60, 40, 60), 40
CKKS_ERROR = 2.0**-20  # allowed per term of a sum, of products below 1


def seconds(work: Callable[[], object], per: int, repeat: int) -> float:
    """Time of the fastest of some runs, divided by the number of operations in one."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) / per


def integers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-TOP, TOP, shape)


def measure_heu(schema: str, bits: int, options: argparse.Namespace) -> Row:
    """All operations on exact integers; of the larger matrix some rows stand for all."""
    from heu import numpy as hnp
    from heu import phe

    kit = hnp.setup(getattr(phe.SchemaType, schema), bits)
    encryptor, decryptor, evaluator = kit.encryptor(), kit.decryptor(), kit.evaluator()
    x, weights = integers(2, NUMBERS)
    repeat = options.repeat

    def encrypt(numbers: np.ndarray) -> Any:
        return encryptor.encrypt(kit.array(numbers))

    def decrypt(c: Any) -> np.ndarray:
        return decryptor.decrypt(c).to_numpy()

    def check(c: Any, expected: np.ndarray) -> None:
        if decrypt(c).ravel().tolist() != expected.tolist():
            raise RuntimeError(f"the result of {schema} is wrong")

    c = encrypt(x)
    few = c[:FEW]  # decryption is slow, and gains nothing from more
    check(evaluator.mul(evaluator.add(few, few), kit.array(weights[:FEW])), 2 * (x * weights)[:FEW])
    spent = {
        "encryption, public key": seconds(lambda: encrypt(x), NUMBERS, repeat),
        "addition": seconds(lambda: evaluator.add(c, c), NUMBERS, repeat),
        "product by 16-bit integers": seconds(lambda: evaluator.mul(c, kit.array(weights)), NUMBERS, repeat),
        "decryption": seconds(lambda: decrypt(few), FEW, repeat),
    }
    for size in SIZES:
        matrix, vector = integers(size, size)[: options.rows if size > 100 else size], c[:size]
        check(evaluator.matmul(kit.array(matrix), vector), matrix @ x[:size])
        took = seconds(lambda m=matrix, v=vector: evaluator.matmul(kit.array(m), v), len(matrix), repeat)
        spent[f"matrix {size}x{size} by vector"] = took * size
    return {"operations": spent, "error": 0}


def measure_ckks(options: argparse.Namespace) -> Row:
    """All operations on fractions of 15 bits."""
    import tenseal

    threads = {"n_threads": options.threads} if options.threads else {}
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=DEGREE, coeff_mod_bit_sizes=list(MODULI), **threads
    )
    context.global_scale = 2.0**SCALE_BITS
    context.generate_galois_keys()
    slots, repeat, worst = DEGREE // 2, options.repeat, 0.0

    def check(c: Any, expected: np.ndarray, terms: int) -> None:
        nonlocal worst
        error = float(np.abs(np.array(c.decrypt()) - expected).max())
        if not error < terms * CKKS_ERROR:
            raise RuntimeError(f"CKKS is off by {error}")
        worst = max(worst, error)

    x, weights = integers(2, slots) / TOP
    numbers, factors = x.tolist(), weights.tolist()
    c = tenseal.ckks_vector(context, numbers)
    check((c + c) * factors, 2 * x * weights, 2)
    spent = {
        "encryption, public key": seconds(lambda: tenseal.ckks_vector(context, numbers), slots, repeat),
        "addition": seconds(lambda: c + c, slots, repeat),
        "product by 16-bit integers": seconds(lambda: c * factors, slots, repeat),
        "decryption": seconds(lambda: c.decrypt(), slots, repeat),
    }
    for size in SIZES:
        matrix = integers(size, size) / TOP
        vector, columns = tenseal.ckks_vector(context, numbers[:size]), matrix.T.tolist()
        check(vector.matmul(columns), matrix @ x[:size], size)
        took = seconds(lambda v=vector, m=columns: v.matmul(m), 1, repeat)
        spent[f"matrix {size}x{size} by vector"] = took
    return {"operations": spent, "error": worst}


def measure(scheme: str, bits: int, options: argparse.Namespace) -> Row:
    """Times one scheme in this process."""
    _, schema = SCHEMES[scheme]
    return measure_ckks(options) if scheme == "CKKS" else measure_heu(schema, bits, options)


def installed(system: str) -> str | None:
    """The version of a package, or None where it is not installed."""
    try:
        return version(system) if find_spec(MODULES[system]) else None
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bits", default="2048,3072", help="sizes of keys, comma-separated (default 2048,3072)")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each operation (default 3)")
    parser.add_argument("--rows", type=int, default=8, help="rows of the 768x768 product that HEU computes (default 8)")
    parser.add_argument("--threads", type=int, default=0, help="of TenSEAL; all cores by default")
    parser.add_argument("--timeout", type=float, default=600, help="seconds allowed for one scheme and size of key")
    parser.add_argument("--out", type=Path, help="file to write the rows to, as a JSON list")
    parser.add_argument("--child", nargs=2, metavar=("SCHEME", "BITS"), help="(internal) one scheme, in this process")
    options = parser.parse_args()
    if min(options.repeat, options.rows) < 1:
        parser.error("--repeat and --rows must be at least 1")
    if options.child:
        print(json.dumps(measure(options.child[0], int(options.child[1]), options)), flush=True)
        return
    present = {system: found for system in MODULES if (found := installed(system))}
    sizes = [int(size) for size in options.bits.split(",")]
    cases = [
        (scheme, bits)
        for scheme, (system, _) in SCHEMES.items()
        if system in present
        for bits in ([0] if scheme == "CKKS" else sizes)
    ]
    given = [f"--{name}={getattr(options, name)}" for name in ("repeat", "rows", "threads")]

    def rows(case: tuple[str, int]) -> list[Row]:
        scheme, bits = case
        command = [sys.executable, __file__, *given, "--child", scheme, str(bits)]
        measured = run_children([command], options.timeout)
        system = SCHEMES[scheme][0]
        facts = {"system": f"{system} {present[system]}", "scheme": scheme, "bits": bits or None}
        return [{**facts, **{key: measured.get(key) for key in ("operations", "error", "problem")}}]

    run_all(cases, rows, options.out)


if __name__ == "__main__":
    main()
