"""What `connect` does before a session is there: who this process is, and the links to the other parties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocols import identity
from protocols.channel import Channel
from protocols.channel import connect as connect_channel
from protocols.errors import explain, public_reason
from protocols.identity import Identity, PartiesConfig
from securemodel.errors import ConfigError
from securemodel.invocation import current


def place(
    parties: Sequence[str],
    me: str | None,
    config: str | Path | PartiesConfig | None,
    insecure_plain: bool,
    command: str = "run",
) -> tuple[str, PartiesConfig, Identity | None]:
    """Who of a program's parties this process is, where the others are, and its identity. Raises ConfigError, which names `command`."""
    me = me or current().me
    config = config or current().config
    if not me or not config:
        raise ConfigError(
            "connect() does not know who this process is. Start the script with "
            f"`securemodel {command} SCRIPT --local` or `securemodel {command} SCRIPT --me NAME --config parties.toml`, "
            "or pass me= and config=."
        )
    config = config if isinstance(config, PartiesConfig) else _read(config).at_lane(current().lane)
    _check_parties(parties, me, config)
    return me, config, _own_identity(config, insecure_plain)


def at_lane(config: str | Path | PartiesConfig | None, lane: int) -> PartiesConfig | None:
    """The parties of this file, or of the one that the command line names, at a lane. Raises ConfigError."""
    config = config or current().config
    return config if config is None else _read(config).at_lane(lane)


def _read(config: str | Path | PartiesConfig) -> PartiesConfig:
    return config if isinstance(config, PartiesConfig) else identity.load_config(config)


def contributor(me: str | None, config: str | Path | PartiesConfig | None) -> tuple[PartiesConfig, Identity]:
    """The parties file and the identity of an owner who shares its rows and takes no part. Raises ConfigError."""
    me, config = me or current().me, config or current().config
    if not me or not config:
        fix = "start it with `securemodel share SCRIPT --me NAME --config parties.toml`, or pass me= and config="
        raise ConfigError(explain("share_rows() does not know whose rows to share", fix=fix))
    config = _read(config)
    config.contributor(me)
    own = _own_identity(config, False)
    if own is None or own.name != me:
        what, fix = f"the identity of the parties file is not that of {me!r}", "use this owner's own parties file"
        raise ConfigError(explain(what, where=str(config.path), fix=fix))
    return config, own


def join(me: str, config: PartiesConfig, own: Identity | None, insecure_plain: bool) -> Channel:
    """Connects with the others; goes on from where the command line began, if it is about the same party and file."""
    arrival, arrivals = None, current().arrivals
    while arrivals:
        arrived = arrivals.pop()
        if (arrived.me, arrived.config, arrived.plain) == (me, config, insecure_plain):
            arrival = arrived
        else:
            arrived.close()
    return connect_channel(me, config, own, insecure_plain=insecure_plain, arrival=arrival)


def _own_identity(config: PartiesConfig, insecure_plain: bool) -> Identity | None:
    if insecure_plain:
        return None
    if config.identity is None:
        raise ConfigError(f"{config.path or 'the configuration'} names no identity: set identity under [me]")
    return identity.load(config.identity)


def _check_parties(parties: Sequence[str], me: str, config: PartiesConfig) -> None:
    if me not in parties:
        raise ConfigError(f"{me!r} is not a party of this program: its parties are {', '.join(parties)}")
    if set(config.parties) != set(parties):
        raise ConfigError(
            f"the program's parties are {', '.join(parties)}, but {config.path or 'the configuration'} lists "
            f"{', '.join(config.parties)}. Use the same names in both."
        )


@contextmanager
def aborting(*held: Any) -> Iterator[None]:
    """An error inside ends what is held: the peers hear of it, with a public reason."""
    try:
        yield
    except BaseException as error:
        for thing in held:
            thing.abort(public_reason(error))
        raise
