"""A Grid of Flower that calls the client app in this process: no server, no other process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Tamper = Callable[[Message], Message]


class DirectGrid(Grid):
    """Sends messages to `count` clients, nodes 1, 2, …, one after the other. Errors of the app come back as Flower does it.

    `lost`: nodes that never answer. `tamper` may change a reply on its way.
    """

    def __init__(
        self, app: ClientApp, count: int, lost: Iterable[int] = (), tamper: Tamper = lambda reply: reply
    ) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # as Flower's own simulation does
        self._app, self._lost, self._tamper = app, set(lost), tamper
        self.contexts = {
            node: Context(1, node, UserConfig({"partition-id": node - 1}), RecordDict(), UserConfig())
            for node in range(1, count + 1)
        }
        self.sent: list[Message] = []
        self.replies: list[Message] = []

    def set_run(self, run) -> None: ...

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.sent = list(messages)
        self.replies = [
            self._tamper(self._answer(message))
            for message in self.sent
            if message.metadata.dst_node_id not in self._lost
        ]
        return self.replies

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            return Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
