"""The client's side of a Flower app: what training makes leaves as sealed shares, and nothing else of it does.

    app = ClientApp(mods=[SecureMod("federation.json")])

Needs flwr 1.42 or newer and cryptography, but no torch. The server puts the round's card into the record "securemodel" of a
message; the reply is one record of that name, with a sealed part for each aggregator. Where clients alone get the aggregates,
the model is in the client's own state, as the record MODEL of `securemodel.edge.flower_model`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from securemodel.edge.errors import InputError, ServiceError, WireError
from securemodel.edge.federation import read_file
from securemodel.edge.flower_model import Kept, News
from securemodel.edge.rounds import Layout, RoundCard, digest_of
from securemodel.edge.updates import share_update

RECORD = "securemodel"
METRIC = "metric "
"""Before the name of a metric, where it is shared as one more array. No array of a model is called that."""
_SEALED = "securemodel.sealed"


# ---- the mod
class SecureMod:
    """Shares what a client trained with the aggregators, instead of sending it to the server.

    `federation`: federation.json, its path or what it holds: the aggregators' names and public keys. Whoever gives it
    decides who gets the shares, so take it from somebody you trust, and not from the server that relays. Without it, and
    with `insecure_trust_server`, they are those that the server names: for simulations. `clear`: kinds of messages ("evaluate",
    "query") whose replies go to the server as they are; others need a card. Raises EdgeError, which names what is wrong.
    """

    def __init__(
        self,
        federation: str | Path | Mapping[str, Any] | None = None,
        *,
        insecure_trust_server: bool = False,
        clear: Collection[str] = (),
    ) -> None:
        if (federation is None) != insecure_trust_server:
            raise ServiceError(
                "the mod has to know whom it shares with",
                why="with keys that the server names, the server can read what is shared",
                fix="give it the federation.json of the aggregators; for simulations alone: insecure_trust_server=True",
            )
        self._trusted = None if federation is None else [(each.name, each.hpke) for each in read_file(federation)]
        self._clear = frozenset(clear)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        news, kept = News.taken_from(message.content), Kept(context)
        if news is not None:
            kept.take(news, self._check_trusted)
            if news.only:
                return Message(RecordDict({RECORD: ConfigRecord({"taken": kept.round})}), reply_to=message)
        if message.metadata.message_type.split(".")[0] in self._clear:
            if news is not None:
                _put(kept.model, message.content)
            return call_next(message, context)
        card, told = self._round(message)
        before = _numpy(message.content, "the message")
        if card.model and card.model != digest_of(before):
            raise WireError(
                "other_model",
                "the server sent another model than the round's card names",
                where=f"round {card.round}",
                fix="if it is not the server's mistake, take part in nothing that it asks for",
            )
        if news is not None and kept.model is not None:
            before = kept.model
            _put(before, message.content)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        metrics = {name: value for record in reply.content.metric_records.values() for name, value in record.items()}
        after = _numpy(reply.content, "the reply") if _has_arrays(card) else {}
        arrays = _update(card, before, after) | _bounded_metrics(metrics, told["metrics"], card.limit)
        weight = _weight(metrics, told["weight"]) if told["weight"] else 1
        uploads = share_update(card, arrays, weight=weight, id=str(context.node_id))
        if card.reveal == "clients":
            kept.shared(before, uploads)
        return Message(RecordDict({RECORD: packed(uploads.sealed())}), reply_to=message)

    def _round(self, message: Message) -> tuple[RoundCard, dict[str, Any]]:
        """The round's card, and what the server asks for beside the model."""
        record = message.content.config_records.get(RECORD)
        if record is None:
            raise WireError(
                "no_card",
                f"the server asks for an answer to {message.metadata.message_type!r} in the clear",
                fix="it needs a SecureStrategy; if such answers are no secret, name their kind: SecureMod(clear=…)",
            )
        try:
            card, told = RoundCard.read(bytes(record["card"])), json.loads(str(record["told"]))
            asked = {"metrics": dict(told["metrics"]), "weight": str(told["weight"])}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, WireError):
                raise
            raise WireError("bad_card", "the server's message has no readable card", where=RECORD) from error
        self._check_trusted(card)
        return card, asked

    def _check_trusted(self, card: RoundCard) -> None:
        """Raises WireError for a card of others than the aggregators that are trusted here."""
        named = [(each.name, each.key) for each in card.aggregators]
        if self._trusted is not None and named != self._trusted:
            raise WireError(
                "other_aggregators",
                "the server names other aggregators, or other keys of theirs, than the ones that are trusted here",
                where=f"round {card.round}: {', '.join(name for name, _ in named)}",
                why="whoever has a key's private half reads the shares that are sealed to it",
                fix="ask the aggregators, not the server, for their public keys",
            )


def _has_arrays(card: RoundCard) -> bool:
    return any(not each.name.startswith(METRIC) for each in card.layout.fields)


def _update(
    card: RoundCard, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What training changed, of the arrays that the card asks for."""
    wanted = [each for each in card.layout.fields if not each.name.startswith(METRIC)]
    missing = [each.name for each in wanted if each.name not in after or after[each.name].shape != each.shape]
    if missing:
        raise InputError(
            "the reply's arrays are not those of the model that the server sent",
            where=", ".join(missing),
            fix="reply with all arrays of the model, under their names",
        )
    return {each.name: after[each.name].astype(each.dtype) - before[each.name].astype(each.dtype) for each in wanted}


def _bounded_metrics(metrics: Mapping[str, Any], bounds: Mapping[str, float], limit: float) -> dict[str, np.ndarray]:
    """Metrics as numbers within the round's limit: their part of their bound, beyond which they are cut off."""
    missing = sorted(set(bounds) - set(metrics))
    if missing:
        raise InputError(f"the reply lacks metrics that the round is about: {', '.join(missing)}")
    return {METRIC + name: np.clip(np.float64(metrics[name]) / bound, -1, 1) * limit for name, bound in bounds.items()}


def _weight(metrics: Mapping[str, Any], name: str) -> int:
    value = metrics.get(name)
    if not isinstance(value, int | float) or not float(value).is_integer():
        raise InputError(
            f"the reply's metric {name!r} is no whole number", why="it is what the update is weighted by",
            fix=f"reply with a MetricRecord that has {name!r}",
        )  # fmt: skip
    return int(value)


# ---- records, at both sides
def numpy_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    """The arrays of a record, by name."""
    return {name: np.asarray(array.numpy()) for name, array in record.items()}


def record_of(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """A record of arrays by name; numbers of NumPy are arrays without axes."""
    return ArrayRecord({name: Array(np.asarray(x)) for name, x in arrays.items()})


def _numpy(content: RecordDict, what: str) -> dict[str, np.ndarray]:
    """The arrays of the one ArrayRecord that a message has."""
    records = list(content.array_records.values())
    if len(records) != 1:
        raise InputError(f"{what} has {len(records)} array records", fix="put all arrays into one")
    return numpy_of(records[0])


def _put(model: Mapping[str, np.ndarray] | None, content: RecordDict) -> None:
    """Puts a client's own model in the place of the one that the server sent."""
    names = list(content.array_records)
    if model is not None and len(names) == 1:
        content[names[0]] = record_of(model)


def layout_of(arrays: Mapping[str, np.ndarray], metrics: Collection[str], *, integers: bool) -> Layout:
    """What clients share of a model: its real arrays, with `integers` its whole ones too, and metrics."""
    kinds = "fiu" if integers else "f"
    wide = {
        name: np.zeros(x.shape, np.float64 if x.dtype.kind == "f" else np.int64)
        for name, x in arrays.items()
        if x.dtype.kind in kinds
    }
    return Layout.of(wide | {METRIC + name: np.zeros(()) for name in metrics}, integers="round")


def packed(parts: Mapping[int, bytes]) -> ArrayRecord:
    """Sealed parts by rank, as arrays of bytes, which Flower sends in pieces."""
    return ArrayRecord({str(rank): Array("uint8", (len(part),), _SEALED, part) for rank, part in parts.items()})


def unpacked(content: RecordDict) -> dict[int, bytes]:
    """The parts of a reply, by rank; WireError where it has none."""
    record = content.array_records.get(RECORD)
    rank = lambda name: name.isdecimal() and len(name) <= 2
    if record is None or not all(rank(name) and array.stype == _SEALED for name, array in record.items()):
        raise WireError("bad_part", "a reply has no shares", fix="the client app needs a SecureMod")
    return {int(name): array.data for name, array in record.items()}


def card_record(card: RoundCard, metrics: Mapping[str, float], weight: str) -> ConfigRecord:
    """What a client gets of a round. `metrics`: largest magnitudes by name; `weight`: the metric to weight by, or nothing."""
    return ConfigRecord({"card": card.text(), "told": json.dumps({"metrics": dict(metrics), "weight": weight})})
