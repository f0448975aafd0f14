"""What clients of a Flower app are told of rounds whose aggregates they alone get: the server passes on what is sealed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import WARNING

from flwr.app import Message, RecordDict
from flwr.supercore import log

from securemodel.edge.errors import EdgeError
from securemodel.edge.flower_model import News, Result
from securemodel.edge.rounds import RoundCard

Deliver = Callable[[int, str], "dict[int, bytes] | None"]
"""What every aggregator sealed for a client of a round's result, by rank; None for one that was in no round yet."""


class Results:
    """Rounds with results, and which of them each client has."""

    def __init__(self) -> None:
        self._cards: list[RoundCard] = []
        self._has: dict[str, int] = {}
        self._sent: dict[str, int] = {}

    def ended(self, card: RoundCard) -> None:
        """A round has a result."""
        self._cards.append(card)

    def add_to(self, message: Message, deliver: Deliver) -> None:
        """Puts what a client lacks into a message to it, whose content may be that of others, too."""
        client = str(message.metadata.dst_node_id)
        message.content = RecordDict(dict(message.content))
        self._news(client, deliver, only=False).add_to(message.content)

    def alone(self, nodes: Iterable[int], deliver: Deliver) -> list[Message]:
        """Messages of nothing else, to the nodes that lack some."""
        made = []
        for node in nodes:
            news = self._news(str(node), deliver, only=True)
            if news.results:
                content = RecordDict()
                news.add_to(content)
                made.append(Message(content, node, "train"))
        return made

    def _news(self, client: str, deliver: Deliver, *, only: bool) -> News:
        results, previous, has = list[Result](), 0, self._has.get(client, 0)
        for card in self._cards:
            if card.round > has:
                try:
                    parts = deliver(card.round, client)
                except EdgeError as error:
                    log(WARNING, "client %s gets no result of round %s: %s", client, card.round, error.what)
                    break
                if parts is None:
                    break
                results.append(Result(previous, card, parts))
            previous = card.round
        self._sent[client] = results[-1].card.round if results else has
        return News(results, self._cards[-1].round if self._cards else 0, only)

    def heard(self, replies: Iterable[Message]) -> None:
        """Whoever answers without an error has what it was sent."""
        for reply in replies:
            client = str(reply.metadata.src_node_id)
            if not reply.has_error() and client in self._sent:
                self._has[client] = self._sent[client]
