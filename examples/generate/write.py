"""Goes on with a client's words with a lab's language model, letter by letter: neither the words nor the model are shown.

    securemodel run examples/generate/write.py --local
    securemodel run examples/generate/write.py --local -- llama "sea sh"

The same file runs at both parties. Arguments: `gpt2` (the usual) or `llama`, then the words that the client begins
with. What the model remembers of earlier letters, its keys and values, stays between the parties as shares: a letter
costs the same rounds and bytes whatever was written before it.
"""

from __future__ import annotations

import sys

import torch
from model import KINDS, LETTERS, PLACES, Step, first_inputs, new_model, numbers, trained

import securemodel

PARTIES = ("lab", "client")
COUNT, WORDS = 10, "she s"


def make_program(kind: str = "gpt2") -> securemodel.Program:
    """One step of writing. The letter, keys and values stay as shares for the next one; the client sees the letter."""
    with torch.device("meta"):
        step = Step(new_model(kind))
    inputs = {"given": "client", "reading": "public", "place": "public"}
    state = {"written": 1, "keys": 2, "values": 3}
    return securemodel.compile(step.eval(), first_inputs(), weights="lab", inputs=inputs, outputs="client", state=state)


def write(session: securemodel.Session, words: str | None, length: int, count: int) -> str:
    """The letters written after words of this length, which only their owner has; empty for everybody else."""
    letters = numbers(words) if words else None
    written = ""
    for place in range(length + count - 1):
        reading = place < length
        at = min(place, length - 1)  # not looked at once the prompt has been read
        given = None if letters is None else letters[:, at : at + 1]
        made = session.run(given, torch.tensor([int(reading)]), torch.tensor([place]))
        if made is not None and place >= length - 1:
            written += LETTERS[int(made)]
    return written


def main(kind: str, words: str) -> None:
    if kind not in KINDS or not words or set(words) - set(LETTERS) or len(words) + COUNT > PLACES + 1:
        sys.exit(f"give {' or '.join(KINDS)}, then at most {PLACES + 1 - COUNT} of the letters '{''.join(LETTERS)}'")
    with securemodel.connect(make_program(kind)) as session:
        client = session.me == "client"
        session.load(session.program, None if client else Step(trained(kind)).eval())
        written = write(session, words if client else None, len(words), COUNT)
        stats = session.stats
    if client:
        sent = sum(stats.sent_bytes.values())
        print(f"{words}[{written}]")
        print(f"{kind}: {stats.seconds:.2f} s, {stats.rounds} rounds, {sent / 1e3:.0f} kB sent for the last letter")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "gpt2", sys.argv[2] if len(sys.argv) > 2 else WORDS)
