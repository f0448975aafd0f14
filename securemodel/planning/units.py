"""Counts, bytes, seconds and networks as people read them."""

from __future__ import annotations

from securemodel.planning.costs import Network


def network_text(network: Network) -> str:
    """`lan: 1 Gbit/s, 0.25 ms one way`."""
    speed = f"{network.bandwidth / 1e9:g} Gbit/s" if network.bandwidth >= 1e9 else f"{network.bandwidth / 1e6:g} Mbit/s"
    return f"{network.name}: {speed}, {network.latency * 1e3:g} ms one way"


def bytes_text(count: int) -> str:
    """`12.3 KB`, with thousands as units."""
    return f"{count} B" if count < 1000 else _scaled(count) + "B"


def count_text(count: int) -> str:
    """`12.3 M`, with thousands as units."""
    return str(count) if count < 1000 else _scaled(count)


def _scaled(count: int) -> str:
    number, units = float(count), iter(["", "K", "M", "G", "T", "P"])
    unit = next(units)
    while number >= 999.5 and unit != "P":
        number, unit = number / 1000, next(units)
    return f"{number:.{0 if number >= 99.95 else 1}f} {unit}"


def seconds_text(seconds: float) -> str:
    """`3.10 ms`, `1.25 s`, `11 min` or `18 h`."""
    if seconds >= 600:
        return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.0f} h"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"
