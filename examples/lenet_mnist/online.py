"""Answers one request at a time with the network kept loaded: how long does a single image take?

    securemodel run examples/lenet_mnist/online.py --local -- 50

The program takes one image and reveals only the digit. The weights are shared once; while nothing is asked, the parties
prepare the next request. The argument is how many requests the session answers: both parties must know it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator

import torch
from infer import hospital_batches, load_model
from model import LeNet5

import securemodel

PARTIES = ("bank", "hospital")
PAUSE_S = 0.05  # between two requests, as if somebody had to draw the next digit


def make_program() -> securemodel.Program:
    """The network for one image; of its ten scores, only which one is largest becomes known."""
    with torch.device("meta"):
        model = LeNet5().eval()
    example = torch.zeros(1, 1, 28, 28)
    return securemodel.compile(model, (example,), weights="bank", inputs="hospital", outputs="hospital", reveal="class")


def requests(count: int) -> Iterator[torch.Tensor]:
    """One image after the other. Only the hospital has them."""
    images = torch.cat(hospital_batches(5))
    for index in range(count):
        time.sleep(PAUSE_S)
        yield images[index % len(images)].unsqueeze(0)


def main(count: int) -> None:
    with securemodel.connect(make_program()) as session:
        session.load(session.program, load_model(session.me))
        if session.me == "bank":
            for _ in range(count):
                session.run(None)  # returns when the hospital has asked and got its answer
            return
        digits, seconds = [], []
        for image in requests(count):
            digits.append(int(session.run(image)))
            seconds.append(session.stats.seconds)
    print(f"digits: {' '.join(map(str, digits[:20]))}{' ...' if count > 20 else ''}")
    print(f"first request {1e3 * seconds[0]:.1f} ms", end="")
    if later := sorted(seconds[1:]):
        print(f"; then median {1e3 * statistics.median(later):.1f} ms, slowest {1e3 * later[-1]:.1f} ms", end="")
    print()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
