"""Labeled, counted messages between parties, in one process or over TLS. Modules, bottom to top:

frame      what a message looks like, and how a receiver checks it
buffers    bytes in and out of tensors without copies
stats      counts of bytes, messages and rounds
base       Channel: what a party holds, whatever carries the messages
local      parties in one process
records    records of AES-256-GCM over a socket that never blocks
stream     the same in the clear; and the TLS handshake by which records get their keys
link       one connection to one peer, and the loop that drives several
tcp        Channel over links
tls        TLS 1.3 with pinned certificates
listen     all addresses of a name, and a room for connections not authenticated yet
hello      the first message of a link
notices    what who waits is told: for whom, and why
meeting    dialing and accepting, also by who is not ready yet
reception  links that come to the dealer, put together to sessions
connecting what parties call to be connected
testing    throw-away parties on one host
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protocols.channel.base import Channel
    from protocols.channel.connecting import arrive, connect, dial
    from protocols.channel.frame import HEADER_BYTES, Label, Purpose
    from protocols.channel.link import Link
    from protocols.channel.local import local_channels, local_links
    from protocols.channel.meeting import Meeting
    from protocols.channel.reception import Reception
    from protocols.channel.stats import ChannelStats

__all__ = ["HEADER_BYTES", "Channel", "ChannelStats", "Label", "Link", "Meeting", "Purpose", "Reception", "arrive", "connect", "dial", "local_channels", "local_links"]  # fmt: skip

_WHERE = {
    "base": ("Channel",),
    "connecting": ("arrive", "connect", "dial"),
    "frame": ("HEADER_BYTES", "Label", "Purpose"),
    "link": ("Link",),
    "local": ("local_channels", "local_links"),
    "meeting": ("Meeting",),
    "reception": ("Reception",),
    "stats": ("ChannelStats",),
}
"""Where each name is defined: it is imported when it is first asked for. `tls` and `listen` need no torch."""
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value
