"""The process of one party: it gets a program's text and its own tensors, and talks CrypTen with the others.

It is started by securemodel.sessions.crypten, and talks with it over a pair of sockets in messages of bytes:
JSON, followed by tensors as safetensors. Nothing is pickled.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from protocols.errors import SecureModelError, summary
from securemodel.compiler.builder import is_whole, mapped
from securemodel.compiler.ir import Node
from securemodel.engines.clear import typed
from securemodel.engines.crypten.adapter import load as load_crypten
from securemodel.engines.crypten.operators import OPERATORS
from securemodel.engines.crypten.program import parse
from securemodel.engines.packing import pack, unpack

BEAT_S = 1.0
BEAT = b"beat"


class Party:
    """One party's walk through a program."""

    def __init__(self, text: str, me: str) -> None:
        self.header, self.graph = parse(text)
        self.me, self.at = me, "the start"
        self._crypten = load_crypten()
        self._crypten.cfg.encoder.precision_bits = self.header.frac_bits
        self._crypten.cfg.communicator.verbose = True
        self._crypten.init()
        self._loaded: dict[int, Any] = {}
        self._last = {arg: node.id for node in self.graph.nodes for arg in node.args}

    def counted(self) -> dict[str, float]:
        """Rounds and bytes up to now, as CrypTen counts them: a byte at its sender and at its receiver."""
        return self._crypten.communicator.get().get_communication_stats()

    def load(self, mine: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Shares what is known at loading; `mine` has this party's part of it, by node."""
        self._loaded = {n.id: self._share(n, mine) for n in self.graph.nodes if n.op == "input" and n.phase == "load"}
        return {}

    def run(self, mine: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One evaluation; returns the outputs this party learns, by their index."""
        values = dict(self._loaded)
        outputs: dict[str, torch.Tensor] = {}
        with self._crypten.no_grad():
            for node in self.graph.nodes:
                self.at = f"{node.attrs.get('target', node.op)} (node {node.id})"
                if node.op == "input" and node.phase == "run":
                    values[node.id] = self._share(node, mine)
                elif node.op == "call":
                    values[node.id] = self._call(node, values)
                elif node.op == "item":
                    values[node.id] = values[node.args[0]][node.attrs["index"]]
                elif node.op == "reveal":
                    self._reveal(node, values[node.args[0]], outputs)
                for arg in node.args:
                    if self._last[arg] == node.id:
                        values.pop(arg, None)
        return outputs

    def _share(self, node: Node, mine: Mapping[str, torch.Tensor]) -> Any:
        own = mine[str(node.id)] if node.owner == self.me else torch.zeros(node.shape)
        return self._crypten.cryptensor(own, src=self.header.parties.index(node.owner))

    def _call(self, node: Node, values: Mapping[int, Any]) -> Any:
        given = lambda text: values[int(text[1:])] if text.startswith("%") else text
        args, kwargs = (mapped(node.attrs[name], str, given) for name in ("args", "kwargs"))
        made = OPERATORS[node.attrs["target"]].run(*args, **kwargs)
        return tuple(map(self._scaled, made)) if isinstance(made, tuple) else self._scaled(made)

    def _scaled(self, x: Any) -> Any:
        """A secret at the program's scale: CrypTen leaves bits at scale 1, where a product by 0.5 would be 0."""
        x._tensor.encode_(type(x.encoder)())
        return x

    def _reveal(self, node: Node, x: Any, outputs: dict[str, torch.Tensor]) -> None:
        """Gathers the shares of an output at who may learn it.

        CrypTen's own way to open for one party is gloo's reduce, which leaves partial results, and whole ones of some
        elements, at the others. A fresh sharing of zero goes in first, so that the shares tell their sum only.
        """
        communicator, to = self._crypten.communicator.get(), node.attrs["to"]
        for name in self.header.parties if to == "all" else (to,):
            fresh = x.share + type(x._tensor).PRZS(x.share.size()).share
            shares = communicator.gather(fresh.contiguous(), self.header.parties.index(name))
            if name == self.me:
                real = sum(shares).double() / x.encoder.scale
                real = real.round() if is_whole(getattr(torch, node.attrs["dtype"])) else real
                outputs[str(node.attrs["index"])] = typed(real, node.attrs["dtype"]).contiguous()


class Pipe:
    """Messages to and from the session's process; a beat now and then says that this one is alive."""

    def __init__(self, descriptor: int) -> None:
        self._connection, self._lock = Connection(descriptor), threading.Lock()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            self._send(BEAT)

    def _send(self, message: bytes) -> None:
        try:
            with self._lock:
                self._connection.send_bytes(message)
        except OSError:  # the session's process is gone
            os._exit(1)

    def reply(self, words: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Sends what was made, or an error."""
        self._send(pack(words, tensors or {}))

    def receive(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What to do next. Ends this process when the session's is gone."""
        try:
            return unpack(self._connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)


def serve(pipe: Pipe, me: str) -> None:
    """Does what the session says until it says no more; an error is told, and is the last thing that is done."""
    party: Any = None
    try:
        while True:
            words, tensors = pipe.receive()
            if words["do"] == "start":
                party, made = Party(words["program"], me), {}
            elif words["do"] in ("load", "run"):
                made = getattr(party, words["do"])(tensors)
            else:
                return
            pipe.reply(party.counted(), made)
    except Exception as error:
        traceback.print_exc()
        where = f"at {party.at}: " if party else ""
        text = str(error) if isinstance(error, SecureModelError) else summary(error)
        pipe.reply({"error": where + text})
        pipe.receive()  # ending now would make the others complain of it, maybe before this error is read


if __name__ == "__main__":
    share = max(1, (os.cpu_count() or 1) // int(os.environ["WORLD_SIZE"]))  # of the cores of this machine
    torch.set_num_threads(min(share, torch.get_num_threads()))
    serve(Pipe(int(sys.argv[1])), sys.argv[2])
    os._exit(0)  # gloo's threads need not be waited for
