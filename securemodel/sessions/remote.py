"""What `connect` does before a session is there: who this process is, and the links to the other parties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocols import identity
from protocols.channel import Channel, Link, Meeting, arrive, dial
from protocols.channel import connect as connect_channel
from protocols.channel.hello import SESSION_BYTES
from protocols.errors import explain, public_reason
from protocols.identity import DEALER, Identity, PartiesConfig
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


def join(me: str, config: PartiesConfig, own: Identity | None, insecure_plain: bool, dealer: bool = False) -> Channel:
    """Connects with the others, from where the command line or `arriving` began, if that is about the same party and file.

    dealer: whether `dial_dealer` follows.
    """
    wanted = {name for name in config.parties if name != me}
    arrival = _arrived(me, config, insecure_plain, wanted)
    if not dealer and (unwanted := _arrived(me, config, insecure_plain, {DEALER})):
        unwanted.close()
    return connect_channel(me, config, own, insecure_plain=insecure_plain, arrival=arrival, say=current().say)


def dial_dealer(
    me: str, config: PartiesConfig, own: Identity | None, insecure_plain: bool, session: bytes = bytes(SESSION_BYTES)
) -> Link:
    """The link to the dealer, in the same way."""
    arrival, say = _arrived(me, config, insecure_plain, {DEALER}), current().say
    return dial(me, DEALER, config, own, session=session, insecure_plain=insecure_plain, arrival=arrival, say=say)


def arrivals(me: str, config: PartiesConfig, own: Identity | None, dealer: bool = True) -> list[Meeting]:
    """Tells the others, and the dealer where one is wanted and listed, that this party is there and not ready."""
    if own is None:
        return []
    wanted = [False, True] if dealer and config.dealer else [False]
    return [made for at_dealer in wanted if (made := arrive(me, config, own, dealer=at_dealer))]


@contextmanager
def arriving(
    me: str | None = None, config: str | Path | PartiesConfig | None = None, *, lane: int = 0
) -> Iterator[None]:
    """Inside, the other parties and the dealer know that this party is there, though not ready, and wait for it.

    For a script that is not started by `securemodel run`, around what takes long and the `connect` after it:
    `connect_s` is then no limit for compiling, as long as this process lives. `me`, `config` and `lane` are what
    `connect` is given. Raises ConfigError.
    """
    me, config = me or current().me, at_lane(config, lane)
    if not me or not config:
        fix = "pass me= and config=, as to connect()"
        raise ConfigError(explain("arriving() does not know who this process is", fix=fix))
    made = arrivals(me, config, _own_identity(config, False))
    current().arrivals.extend(made)
    try:
        yield
    finally:
        for arrival in made:
            if arrival in current().arrivals:
                current().arrivals.remove(arrival)
            arrival.close()


def _arrived(me: str, config: PartiesConfig, plain: bool, names: set[str]) -> Meeting | None:
    """The arrival at these, if this party has made one; its arrivals with another file are over."""
    known = current().arrivals
    for arrival in [arrival for arrival in known if arrival.me == me]:
        if (arrival.config, arrival.plain) != (config, plain):
            known.remove(arrival)
            arrival.close()
        elif arrival.awaited == names:
            known.remove(arrival)
            return arrival
    return None


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
