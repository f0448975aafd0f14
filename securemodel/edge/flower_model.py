"""The model that a client of a Flower app keeps, where clients alone get the aggregates.

The server has the first model and none after it. With its messages come results of rounds, sealed to this client by every
aggregator. Added up, they move the model in the client's own state, which Flower keeps at the client's node, together with
the keys that results are sealed to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict

from securemodel.edge import sealing
from securemodel.edge.errors import WireError
from securemodel.edge.rounds import RoundCard
from securemodel.edge.updates import Uploads, add_results

RESULTS, MODEL = "securemodel.results", "securemodel.model"
"""Names of records: what a message brings, and what a client's state has."""
_PARTS, _KEYS, _SEALED = "securemodel.parts", "securemodel.keys", "securemodel.sealed"
Model = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Result:
    """What a client gets of a round: `previous` is the last one before it with a result (0: none); a part of each rank."""

    previous: int
    card: RoundCard
    parts: Mapping[int, bytes] = field(repr=False)


@dataclass(frozen=True)
class News:
    """Results in their order; `after`: the last round that has one (0: none). `only`: nothing is asked but to take them."""

    results: Sequence[Result]
    after: int
    only: bool

    def add_to(self, content: RecordDict) -> None:
        """Puts it into a message."""
        cards = [each.card.text() for each in self.results]
        told = {"after": self.after, "only": self.only, "cards": cards, "previous": [x.previous for x in self.results]}
        content[RESULTS] = ConfigRecord(told)
        parts = {f"{at} {rank}": part for at, each in enumerate(self.results) for rank, part in each.parts.items()}
        content[_PARTS] = ArrayRecord({name: Array("uint8", (len(x),), _SEALED, x) for name, x in parts.items()})

    @classmethod
    def taken_from(cls, content: RecordDict) -> News | None:
        """What a message brings, which is taken out of it; None where it is no such message. Raises WireError."""
        if RESULTS not in content.config_records:
            return None
        told, parts = content.pop(RESULTS), content.pop(_PARTS, ArrayRecord())
        try:
            cards = [RoundCard.read(bytes(text)) for text in told["cards"]]
            results = [
                Result(int(previous), card, {rank: parts[f"{at} {rank}"].data for rank in range(len(card.aggregators))})
                for at, (previous, card) in enumerate(zip(told["previous"], cards, strict=True))
            ]
            return cls(results, int(told["after"]), bool(told["only"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, WireError):
                raise
            raise WireError("bad_part", "the results that the server sends cannot be read", where=RESULTS) from error


class Kept:
    """A client's own model, in the state that Flower keeps for it."""

    def __init__(self, context: Context) -> None:
        self._state = context.state
        told = self._state.config_records.get(_KEYS, ConfigRecord({"round": 0, "rounds": [], "keys": []}))
        self.round = int(told["round"])
        """The last round whose result is in the model."""
        self._keys = dict(zip(told["rounds"], told["keys"], strict=True))

    @property
    def model(self) -> dict[str, np.ndarray] | None:
        """The model, or None before the first round."""
        record = self._state.array_records.get(MODEL)
        return None if record is None else {name: np.asarray(x.numpy()) for name, x in record.items()}

    def take(self, news: News, check: Callable[[RoundCard], Any]) -> None:
        """Moves the model by the results that it has not had yet. `check` looks at a card. Raises EdgeError."""
        for result in news.results:
            if result.card.round > self.round:
                check(result.card)
                self._move(result)
        if self.round != news.after:
            raise WireError(
                "no_model",
                "this client has not the model that the round starts from",
                where=f"it is that after round {news.after}, and this client has the one after round {self.round}",
                why="clients alone get aggregates: who was in no round yet has no key that they are sealed to",
                fix="let all clients take part in the first round",
            )

    def _move(self, result: Result) -> None:
        number, model = result.card.round, self.model
        if model is None or result.previous != self.round:
            why = f"this client's model is the one after round {self.round}, not {result.previous}"
            raise WireError("no_model", "results of earlier rounds are missing", where=f"round {number}", why=why)
        for at in sorted(self._keys, reverse=True):
            try:
                moved = add_results(result.card, result.parts, sealing.key_of(bytes(self._keys[at])))
            except WireError:
                continue
            self._keys = {later: key for later, key in self._keys.items() if later >= at}
            self.round = number
            self._write({name: (x + moved[name]).astype(x.dtype) if name in moved else x for name, x in model.items()})
            return
        raise WireError("bad_part", "a result is sealed to no key of this client", where=f"round {number}")

    def shared(self, model: Model, uploads: Uploads) -> None:
        """Notes the model that an update starts from, and the key that its round's result is sealed to."""
        self._keys[uploads.card.round] = sealing.bytes_of(uploads.key)
        self._write(model)

    def _write(self, model: Model) -> None:
        self._state[MODEL] = ArrayRecord({name: Array(np.asarray(x)) for name, x in model.items()})
        rounds = sorted(self._keys)
        told = {"round": self.round, "rounds": rounds, "keys": [self._keys[at] for at in rounds]}
        self._state[_KEYS] = ConfigRecord(told)
