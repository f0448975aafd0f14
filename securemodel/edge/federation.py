"""A federation's aggregators, as a site reaches them over HTTPS: the round's card, the upload of an update, the result.

Needs numpy and the standard library. federation.json names the aggregators and the keys that parts are sealed to; whoever
gives it decides who gets the shares, so take it from somebody you trust:

    {"securemodel_federation": 1, "aggregators": [{"name", "url", "certificate", "ca", "hpke"}, …]}

by rank, with the members that a party has in service.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

from securemodel.edge import sealing, service_file
from securemodel.edge.errors import Disagreement, InputError, PartyDown, Refused, ServiceError, WireError
from securemodel.edge.lines import Line
from securemodel.edge.rounds import MAX_CARD_BYTES, RoundCard
from securemodel.edge.service_file import Party
from securemodel.edge.updates import Uploads, add_results, share_update
from securemodel.edge.wire import load, read_problem

_PATH = "/v2/federation"
_PAUSE_S = 0.25
_T = TypeVar("_T")


class Federation:
    """The aggregators of one federation. `file`: federation.json, its path or what it holds; `key`: the site's API key.

    `client` is the site's name, where its key is for a name. Threads may not share one.
    """

    def __init__(
        self, file: str | Path | Mapping[str, Any], *, client: str = "", key: str = "", insecure_plain: bool = False
    ) -> None:
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ServiceError("the key holds characters that no key has")
        self.aggregators = read_file(file)
        self._client, self._key = client, key
        self._lines = [Line(party, insecure_plain=insecure_plain) for party in self.aggregators]
        self._threads = ThreadPoolExecutor(len(self._lines), "edge-federation")

    def card(self, *, after: int = -1, timeout: float = 60.0) -> RoundCard:
        """The round that takes uploads, once all aggregators have the same one, of a number above `after`.

        Raises EdgeError with the last reason when the time is over; Disagreement where keys are not those of the file.
        """
        end = time.monotonic() + timeout
        return self._patiently(lambda: self._card(after, end), end)

    def _card(self, after: int, end: float) -> RoundCard:
        texts = self._all(lambda rank, line: self._ask(line, "GET", f"{_PATH}/round", b"", end))
        if len(set(texts)) != 1:
            raise _NotYet("the aggregators are not in the same round")
        card = self._read_card(texts)
        if card.round <= after:
            raise _NotYet(f"round {card.round} is still the current one")
        return card

    def _read_card(self, texts: list[bytes]) -> RoundCard:
        """The card that all aggregators gave, which names those of the file."""
        if len(texts[0]) > MAX_CARD_BYTES:
            raise WireError("bad_card", "the round's card is too long")
        card = RoundCard.read(texts[0])
        expected = [(party.name, party.hpke) for party in self.aggregators]
        if [(each.name, each.key) for each in card.aggregators] != expected:
            fix = "take a new federation.json from somebody you trust"
            raise Disagreement("the round's card names other aggregators or keys than federation.json", fix=fix)
        return card

    def share(self, card: RoundCard, arrays: Mapping[str, Any], *, weight: int = 1, timeout: float = 60.0) -> Uploads:
        """Shares an update and hands each aggregator its part, sealed to it. Raises InputError, EdgeError."""
        uploads = share_update(card, arrays, weight=weight, id=self._client or None)
        self.upload(uploads, timeout=timeout)
        return uploads

    def upload(self, uploads: Uploads, *, timeout: float = 60.0) -> None:
        """Hands each aggregator its part. The same upload may be sent again. Raises EdgeError."""
        sealed, card = uploads.sealed(), uploads.card
        self._all(lambda rank, line: self.pass_on(card.round, rank, uploads.client, sealed[rank], timeout=timeout))

    def pass_on(self, number: int, rank: int, client: str, part: bytes, *, timeout: float = 60.0) -> None:
        """Hands the aggregator of a rank the part that a client sealed to it, for a relay. Raises EdgeError."""
        path = f"{_PATH}/rounds/{number}/uploads/{quote(client, safe='')}"
        end = time.monotonic() + timeout
        self._patiently(lambda: self._ask(self._lines[rank], "POST", path, part, end), end)

    def result(self, uploads: Uploads, *, timeout: float = 600.0) -> dict[str, np.ndarray]:
        """The aggregate of the round of an upload, once it is there. Raises EdgeError: also where the round was refused."""
        return self._result(uploads.card, uploads.client, uploads.key, timeout)

    def revealed(self, card: RoundCard, *, timeout: float = 600.0) -> dict[str, np.ndarray]:
        """The same for whoever has sent nothing, where aggregators reveal it."""
        return self._result(card, "", None, timeout)

    def sealed_result(self, number: int, client: str, *, timeout: float = 600.0) -> dict[int, bytes] | None:
        """What every aggregator sealed for a client, by rank, for a relay; None for one that was in no round until then.

        Raises EdgeError.
        """
        try:
            return self._parts(number, client, "", time.monotonic() + timeout)
        except Refused as refused:
            if refused.code != "model_not_allowed":
                raise
            return None

    def earlier(self, before: int, *, timeout: float = 600.0) -> Iterator[tuple[RoundCard, dict[str, np.ndarray]]]:
        """(card, aggregate) of each round with a result before that of a number, in order: for a site that comes late.

        Where sites alone get aggregates, the site needs an API key of its own. Raises EdgeError.
        """
        end = time.monotonic() + timeout
        for number in range(1, before):
            if (card := self._card_of(number, end)) is not None:
                key = sealing.one_time_key() if card.reveal == "clients" else None
                try:
                    aggregate = self._result(card, self._client, key, end - time.monotonic(), sealed_to=key)
                except InputError:  # nobody had a weight, which those alone learn who add up the result
                    continue
                yield card, aggregate

    def _card_of(self, number: int, end: float) -> RoundCard | None:
        """The card of a round that has ended; None where it did without a result."""
        path = f"{_PATH}/rounds/{number}/card"
        try:
            texts = self._patiently(lambda: self._all(lambda _, line: self._ask(line, "GET", path, b"", end)), end)
        except Refused as refused:
            if refused.code != "gone":
                raise
            return None
        if len(set(texts)) != 1:
            raise Disagreement("the aggregators tell different things of an earlier round", where=f"round {number}")
        return self._read_card(texts)

    def _result(
        self, card: RoundCard, client: str, key: Any, timeout: float, sealed_to: Any = None
    ) -> dict[str, np.ndarray]:
        seal = sealing.public_of(sealed_to) if sealed_to else ""
        return add_results(card, self._parts(card.round, client, seal, time.monotonic() + timeout), key)

    def _parts(self, number: int, client: str, seal: str, end: float) -> dict[int, bytes]:
        """What every aggregator gives of a round's result, by rank, once all do."""
        path = f"{_PATH}/rounds/{number}/result?client={quote(client, safe='')}" + (f"&seal={seal}" if seal else "")
        ask = lambda: self._all(lambda _, line: self._ask(line, "GET", path, b"", end))
        return dict(enumerate(self._patiently(ask, end)))

    def close(self) -> None:
        """Ends all connections."""
        for line in self._lines:
            line.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(self, ask: Callable[[int, Line], _T]) -> list[_T]:
        """What all aggregators answer, asked side by side; the first error by rank."""
        futures = [self._threads.submit(ask, rank, line) for rank, line in enumerate(self._lines)]
        return [future.result() for future in futures]

    def _ask(self, line: Line, method: str, path: str, body: bytes, end: float) -> bytes:
        more = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        status, _, answer = line.ask(method, path, body, {"Content-Type": "application/octet-stream", **more}, end)
        if status not in (200, 204):
            raise read_problem(line.party.name, status, answer)
        return answer

    def _patiently(self, ask: Callable[[], _T], end: float) -> _T:
        """Asks again while there is only something to wait for, also an aggregator that is started again."""
        while True:
            try:
                return ask()
            except (Refused, PartyDown) as error:
                wait = isinstance(error, PartyDown) or error.retry_after is not None
                if not wait or time.monotonic() + _PAUSE_S >= end:
                    raise
            time.sleep(_PAUSE_S)


class _NotYet(PartyDown):
    """There is nothing to take yet."""

    def __init__(self, what: str) -> None:
        super().__init__("the aggregators", what, fix="allow more time with timeout=")


def read_file(file: str | Path | Mapping[str, Any]) -> tuple[Party, ...]:
    """The aggregators of a federation.json, by rank. Raises ServiceError."""
    where = "federation.json" if isinstance(file, Mapping) else str(file)
    fix = "ask the operator of the federation for its federation.json again"
    try:
        found = file if isinstance(file, Mapping) else load(Path(file).read_bytes(), "federation.json", 1 << 20)
        if found.get("securemodel_federation") != 1 or not isinstance(found.get("aggregators"), list):
            raise WireError("bad_header", "it is of another version, or names no aggregators")
        parties = tuple(
            service_file.read_party(part, f"aggregators[{at}]") for at, part in enumerate(found["aggregators"])
        )
    except OSError as error:
        raise ServiceError("federation.json cannot be read", where=where, why=error.strerror or "", fix=fix) from error
    except ValueError as error:
        raise ServiceError("federation.json is wrong", where=where, why=str(error), fix=fix) from error
    names = {party.name for party in parties}
    if len(parties) < 2 or len(names) != len(parties) or any(party.hpke is None for party in parties):
        why = "there must be two aggregators or more, with different names, each with its key in hpke"
        raise ServiceError("federation.json is wrong", where=where, why=why, fix=fix)
    return parties
