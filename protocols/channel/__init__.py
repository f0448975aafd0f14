"""Labeled, counted messages between parties, in one process or over TLS. Modules, bottom to top:

frame     what a message looks like, and how a receiver checks it
buffers   bytes in and out of tensors without copies
stats     counts of bytes, messages and rounds
base      Channel: what a party holds, whatever carries the messages
local     parties in one process
stream    bytes to and from a socket that never blocks, plain or TLS
link      one connection to one peer, and the loop that drives several
tcp       Channel over links
tls       TLS 1.3 with pinned certificates
listen    all addresses of a name, and a room for connections not authenticated yet
meeting   dialing, accepting and the first message
reception links that come to the dealer, put together to sessions
connect   what parties call to be connected
testing   throw-away parties on one host
"""

from protocols.channel.base import Channel
from protocols.channel.connect import arrive, connect, dial
from protocols.channel.frame import HEADER_BYTES, Label, Purpose
from protocols.channel.link import Link
from protocols.channel.local import local_channels, local_links
from protocols.channel.meeting import Meeting
from protocols.channel.reception import Reception
from protocols.channel.stats import ChannelStats

__all__ = [
    "HEADER_BYTES",
    "Channel",
    "ChannelStats",
    "Label",
    "Link",
    "Meeting",
    "Purpose",
    "Reception",
    "arrive",
    "connect",
    "dial",
    "local_channels",
    "local_links",
]
