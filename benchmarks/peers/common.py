"""What the runners of all peers share: the cases, the form of a result, the command line.

The runners live in environments of their own, beside which only the standard library can be counted on, so this file
imports nothing else and they import it as a neighboring file. A result is a row, a dict with these keys:

    case, system, parties          what ran, on what, among how many
    seconds                        median of the repeats, or None where the case failed
    rounds                         communication rounds, or None where the system does not tell
    sent_bytes_per_party           by the party that sends most, in one run, or None
    preprocessing_bytes            always None: these systems do not keep it apart
    error                          largest absolute difference from the plaintext result, or None
    machine                        in words
    first_seconds, compile_seconds apart from `seconds`: the first run, and the compilation where there is one
    problem                        why the case failed, or None
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CASES = (
    "product",
    "relu",
    "sign",
    "matmul512",
    "matmul1024",
    "conv",
    "maxpool",
    "mlp_b128",
    "lenet5_b1",
    "lenet5_b32",
    "lenet5_b128",
    "vgg16_b1",
    "resnet18_b1",
    "exp",
    "sigmoid",
    "tanh",
    "gelu",
    "reciprocal",
    "rsqrt",
    "softmax",
    "argmax",
    "sort",
    "lstm",
    "encoder_layer",
    "minilm6",
    "correlation",
    "forest",
    "logreg_train_b128",
    "mlp_train_b128",
    "lenet5_train_b128",
)
ELEMENTS = 1 << 20  # of product, relu and sign
FUNCTION_ELEMENTS = 100_000
# what each function is given: normal with a deviation, or uniform between two numbers
FUNCTIONS = {
    "exp": ("normal", 1.0),
    "sigmoid": ("normal", 2.0),
    "tanh": ("normal", 2.0),
    "gelu": ("normal", 2.0),
    "reciprocal": ("uniform", 0.5, 10.0),
    "rsqrt": ("uniform", 0.5, 10.0),
}
LSTM = (16, 20, 40, 128)  # batch, steps, features, hidden
ENCODER = (32, 384, 12, 1536)  # sequence, width, heads, width inside; a batch of one
MLP_SIZES = (784, 128, 128, 10)
FOREST = (1000, 20, 100, 6)  # rows, columns, full trees, depth
TABLE = (100_000, 10)  # rows, columns of each party
FEATURES = 100  # of the logistic regression
RATE = 0.05  # of a training step
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # channels; 0 is a pooling
# channels and stride of each block
RESNET18 = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))

Row = dict[str, Any]


def is_training(case: str) -> bool:
    """Whether a case is a step of SGD: its result are the new weights, and the loss's value is not computed."""
    return "_train_" in case


def batch_of(case: str) -> int:
    """The batch size at the end of a model's case name: 32 for lenet5_b32."""
    return int(case.rpartition("_b")[2])


def row(case: str, system: str, parties: int, measured: Row) -> Row:
    """A complete row from what one case's child process reported; what it did not report is None."""
    keys = ("seconds", "rounds", "sent_bytes_per_party", "error", "first_seconds", "compile_seconds", "problem")
    return {
        "case": case,
        "system": system,
        "parties": parties,
        "preprocessing_bytes": None,
        "machine": machine(),
        **{key: measured.get(key) for key in keys},
    }


def machine() -> str:
    """The processor, how many of its cores this process may use, and the memory."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {cores} cores, {gib:.0f} GiB"


def run_children(commands: Sequence[Sequence[str]], timeout_s: float) -> Row:
    """Runs the processes of one case side by side and gives what the first one printed as its last line of JSON.

    A crash, or a run longer than timeout_s, ends all of them and becomes a `problem`: it costs this case alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(rank)) for rank in range(len(commands))]
        children = []
        try:
            for command, log in zip(commands, logs):
                with log.open("wb") as sink:
                    streams = {"stdin": subprocess.DEVNULL, "stdout": sink, "stderr": subprocess.STDOUT}
                    children.append(subprocess.Popen(command, **streams))
            problem = _wait(children, timeout_s)
        finally:
            for child in children:
                child.kill()
                child.wait()
        lines = logs[0].read_text(errors="replace").splitlines()
        reports = [line for line in lines if line.startswith("{")]
        if problem is None and reports:
            return json.loads(reports[-1])
        last_words = " / ".join(" ".join(log.read_text(errors="replace")[-400:].split()) for log in logs)
        return {"problem": f"{problem or 'it reported nothing'}: {last_words}"}


def _wait(children: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> str | None:
    """Waits until all have ended well (None) or one has not, or time is up (says so)."""
    deadline = time.monotonic() + timeout_s
    while True:
        codes = [child.poll() for child in children]
        if any(codes):
            return f"exit status {next(code for code in codes if code)}"
        if None not in codes:
            return None
        if time.monotonic() > deadline:
            return f"longer than {timeout_s:.0f} s"
        time.sleep(0.02)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all runners have."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; all by default")
    parser.add_argument("--out", type=Path, help="file to write the rows to, as a JSON list")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs after the first one (default 3)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds allowed for one case")
    return parser


def chosen_cases(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """The cases asked for on the command line; ends the program with a message where one is unknown."""
    names = [name for name in options.cases.split(",") if name]
    unknown = [name for name in names if name not in CASES]
    if unknown or not names:
        parser.error(f"unknown cases: {', '.join(unknown) or '(none given)'}; there are {', '.join(CASES)}")
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    return names


def run_all(cases: Sequence[str], measure: Callable[[str], Sequence[Row]], out: Path | None) -> None:
    """Measures case by case, prints each row as a line of JSON, and keeps the file complete after each."""
    rows: list[Row] = []
    for case in cases:
        for new in measure(case):
            rows.append(new)
            print(json.dumps(new), flush=True)
            if out:
                out.write_text(json.dumps(rows, indent=1) + "\n")
