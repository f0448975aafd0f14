"""Which rows of a table a run reads. Public: it follows from a seed and the run's number, at every party and the dealer."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

from protocols.devices import to_device
from securemodel.compiler.ir import Graph, Node

TABLE = "data"
"""How the name of a placeholder begins that stands for rows that are shared once."""


@lru_cache(maxsize=16)
def order(count: int, seed: int, epoch: int, part: int) -> np.ndarray:
    """A public shuffle that is the same on every machine: the order of 64-bit words of SHAKE256. It hides nothing."""
    words = hashlib.shake_256(f"securemodel order {seed} {epoch} {part}".encode()).digest(8 * count)
    made = np.argsort(np.frombuffer(words, dtype="<u8"), kind="stable")
    made.setflags(write=False)
    return made


def order_of_epoch(count: int, seed: int, shuffle: bool, epoch: int, part: int) -> np.ndarray:
    """The order in which an epoch (from 0) takes the rows of a part."""
    return order(count, seed, epoch + 1, part) if shuffle else np.arange(count)


def rows_read(node: Node, count: int, step: int) -> torch.Tensor:
    """The positions that a node `rows` takes of `count` rows in a step (from 0)."""
    attrs = node.attrs
    epoch, at = divmod(step, attrs["steps"])
    size = node.shape[attrs["dim"]]
    taken = order_of_epoch(count, attrs["seed"], attrs["shuffle"], epoch, attrs["part"])[at * size : (at + 1) * size]
    return torch.from_numpy(taken.copy())


def take_rows(graph: Graph, node: Node, table: torch.Tensor, step: int) -> torch.Tensor:
    """The rows of a table, of masked values or of masks, that a node `rows` takes in a step."""
    dim = node.attrs["dim"]
    places = rows_read(node, graph[node.args[0]].shape[dim], step)
    return table.index_select(dim, to_device(places, table.device))


def is_table(graph: Graph, node: Node) -> bool:
    """Whether a node shares rows that are kept, over all sessions of its program."""
    if node.op != "input" or node.phase != "load":
        return False
    source = graph[node.args[0]]
    return source.op == "placeholder" and source.attrs["name"].startswith(f"{TABLE}:")


def table_nodes(graph: Graph) -> list[Node]:
    """The nodes that share such rows."""
    return [node for node in graph.nodes if is_table(graph, node)]
