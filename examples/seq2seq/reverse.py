"""Writes a client's numbers in reverse with a lab's model: every digit stays secret until the last one is written.

    securemodel run examples/seq2seq/reverse.py --local
    securemodel run examples/seq2seq/reverse.py --local -- lstm 314159 271828

The same file runs at both parties. Arguments: `lstm` or `transformer` (the usual), then numbers of six digits, which
only the client uses. Ends with 1 if a number comes back wrong.
"""

from __future__ import annotations

import sys

import torch
from model import DIGITS, KINDS, STEPS, load_trained

import securemodel

PARTIES = ("lab", "client")
BATCH, NUMBERS = 4, ("314159", "271828", "141421", "161803")


def make_program(kind: str = "transformer") -> securemodel.Program:
    """All six steps of writing as one secure program. The model on the meta device holds no numbers."""
    with torch.device("meta"):
        model = KINDS[kind]().eval()
    example = torch.zeros(BATCH, STEPS, dtype=torch.int64)
    return securemodel.compile(model, example, weights="lab", inputs="client", outputs="client")


def main(kind: str, numbers: tuple[str, ...]) -> None:
    if kind not in KINDS or any(len(n) != STEPS or not n.isdecimal() for n in numbers):
        sys.exit(f"give {' or '.join(KINDS)}, then numbers of {STEPS} digits")
    with securemodel.connect(make_program(kind)) as session:
        client = session.me == "client"
        session.load(session.program, None if client else load_trained(kind))
        given = torch.tensor([[int(digit) for digit in number] for number in numbers]) if client else None
        written = session.run(given)  # the client's; None at the lab
        stats = session.stats
    if not client:
        return
    assert DIGITS == 10  # so that a digit is a character
    answers = ["".join(map(str, row)) for row in written.tolist()]
    for number, answer in zip(numbers, answers, strict=True):
        print(f"{number} -> {answer}")
    sent = sum(stats.sent_bytes.values())
    print(f"{kind}: {stats.seconds:.2f} s, {stats.rounds} rounds, {sent / 1e6:.1f} MB sent by the client")
    sys.exit(any(answer != number[::-1] for number, answer in zip(numbers, answers, strict=True)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "transformer", tuple(sys.argv[2:]) or NUMBERS)
