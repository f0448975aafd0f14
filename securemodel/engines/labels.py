"""The labels of all messages that are about a session and not about a program's nodes, so that no two are alike."""

from __future__ import annotations

from protocols.channel import Label, Purpose

AGREE = Label(0, 0, Purpose.CONTROL)
"""Between parties: what each runs, and half of a key for each pair."""
GO_ON = Label(0, 1, Purpose.CONTROL)
"""Between parties: how far each has come with a job, after the agreement and before the weights."""
PAILLIER_KEY = Label(0, 2, Purpose.CONTROL)
"""The client's public key."""
POINTS, ANSWERS = Label(0, 4, Purpose.CONTROL), Label(0, 5, Purpose.CONTROL)
"""Between parties that compare the ids of their rows, after GO_ON."""
BATCHES, BEGUN = Label(0, 6, Purpose.CONTROL), Label(0, 7, Purpose.CONTROL)
"""Between parties that go on with a job: what is to be run, and that all have noted it."""
TOSS, TOSSED = Label(0, 8, Purpose.CONTROL), Label(0, 9, Purpose.CONTROL)
"""Between parties that train: what each brings to a public seed, first hidden, then open."""
STEPS, EXPORT = Label(0, 10, Purpose.CONTROL), Label(0, 11, Purpose.CONTROL)
"""Between parties that train: the checkpoints they have; shares of weights, to who may learn them."""
TABLE, TABLE_TEXT, QUERY = (Label(0, number, Purpose.CONTROL) for number in (14, 15, 16))
"""Between parties of a joint table: its schema and rows, the schema's text where it differs, and what is asked."""
POSITIONS = Label(0, 17, Purpose.CONTROL)
"""... and in which part of a split each row is, from the owner of the column that it follows."""
SERVICE, TRIED = Label(0, 18, Purpose.CONTROL), Label(0, 19, Purpose.CONTROL)
"""Between engines of a service: which weights each can load, before the load; the result of an input that everybody knows."""
STANDING_SIZE, STANDING, DECIDED = (Label(0, number, Purpose.CONTROL) for number in (20, 21, 22))
"""Between aggregators: where each stands with a round, and what they decided of that."""
LOAD, RUN = Label(0, 12, Purpose.CONTROL), Label(0, 13, Purpose.CONTROL)
"""A party's process with CrypTen is told what to do."""
PROGRAM = Label(0, 3, Purpose.CONTROL)
"""A party's program, to the dealer."""
STREAM_KEY = Label(0, 0, Purpose.SEED)
"""A party's key, from the dealer."""
TABLE_KEY = Label(0, 1, Purpose.SEED)
"""The keys of a party's shares of the masks of rows that are shared once, to the dealer."""
END_OF_SESSION = Label(0, 1, Purpose.REQUEST)
"""The last party's last request to the dealer; those for an epoch's shares are about node 0."""


def exchange_label(epoch: int, number: int) -> Label:
    """Between aggregators: what they exchange in the epoch of a round, one after the other."""
    return Label(epoch, 32 + number, Purpose.CONTROL)


def lanes_label(number: int) -> Label:
    """Between parties of a job that runs in lanes, again and again: how far each of them is."""
    return Label(number, 18, Purpose.CONTROL)
