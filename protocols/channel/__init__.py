"""Labeled, counted messages between parties, in one process or over TLS. Modules, bottom to top:

    frame     what a message looks like, and how a receiver checks it
    buffers   bytes in and out of tensors without copies
    stats     counts of bytes, messages and rounds
    base      Channel: what a party holds, whatever carries the messages
    local     parties in one process
"""
from protocols.channel.base import Channel
from protocols.channel.frame import HEADER_BYTES, Label, Purpose
from protocols.channel.local import local_channels, local_links
from protocols.channel.stats import ChannelStats

__all__ = ["HEADER_BYTES", "Channel", "ChannelStats", "Label", "Purpose", "local_channels", "local_links"]
