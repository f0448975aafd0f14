"""Opens the sessions of encrypted graphs and deep models, and has the client's key."""

from __future__ import annotations

from pathlib import Path

from protocols import kernels
from protocols.channel import Channel
from protocols.errors import ConfigError, explain
from protocols.files import read_secret
from protocols.identity import PartiesConfig
from protocols.paillier import PrivateKey, PublicKey, generate, load_private
from protocols.paillier.keys import insecure_generate
from securemodel.engines.labels import PAILLIER_KEY
from securemodel.engines.paillier.deep import DeepProgram
from securemodel.engines.paillier.owned_layers import ClientLayers, OwnerLayers
from securemodel.engines.paillier.party import Client, Server, key_bytes, key_text, read_key
from securemodel.engines.paillier.program import EncryptedProgram, PaillierProgram
from securemodel.engines.paillier.walk import DeepWalk, PaillierWalk, local_deep_walks, local_walks
from securemodel.engines.walk import Walk
from securemodel.sessions.agree import agree
from securemodel.sessions.masked import meet
from securemodel.sessions.remote import aborting, join, place
from securemodel.sessions.session import Session


def new_key(program: EncryptedProgram) -> PrivateKey:
    """A key of the program's size, for one session."""
    bits = program.settings["key_bits"]
    return insecure_generate(bits) if program.settings["insecure"] else generate(bits)


def key_in(path: str | Path, program: EncryptedProgram) -> PrivateKey:
    """The client's private key from its file. Raises ConfigError for a file others can read, or another key."""
    path, bits = Path(path), program.settings["key_bits"]
    try:
        text = read_secret(path, "a private key").decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(explain("the key file cannot be read", where=str(path), why=type(error).__name__)) from None
    key = load_private(text, program.settings["insecure"])
    if key.public.bits != bits:
        raise ConfigError(
            explain(
                f"the key has {key.public.bits} bits, and the program was compiled for {bits}",
                where=str(path),
                fix=f"use another key, or compile with key_bits={key.public.bits} at both parties",
            )
        )
    return key


def open_local(program: PaillierProgram | DeepProgram) -> Session:
    """What `local` opens for encrypted graphs: both parties, with a key made for the session."""
    if isinstance(program, DeepProgram):
        kernels.keep_freed_memory()
        return Session(program, local_deep_walks(program, new_key(program)))
    return Session(program, local_walks(program, new_key(program)))


def open_connection(
    program: PaillierProgram | DeepProgram,
    me: str | None,
    config: str | Path | PartiesConfig | None,
    *,
    store: str | Path | None,
    ahead: bool,
    insecure_plain: bool,
    paillier_key: str | Path | None,
) -> Session:
    """What `connect` opens for encrypted graphs; a dealer is asked for deep models only."""
    if store:
        raise ConfigError(explain("protocol 'paillier' uses no store", why="nothing is dealt", fix="leave out store"))
    me, config, own = place(program.parties, me, config, insecure_plain)
    key = None
    if me == program.client:
        key = key_in(paillier_key, program) if paillier_key else new_key(program)
    if isinstance(program, DeepProgram):
        kernels.keep_freed_memory()
        channel, masked = meet(program, me, config, own, None, ahead, insecure_plain)
        with aborting(channel, masked):
            layers = (
                ClientLayers(program, channel.session, send_key(program, channel, key)) if key
                else OwnerLayers(program, channel.session, receive_key(program, channel))
            )  # fmt: skip
            walk: Walk = DeepWalk(masked, layers)
    else:
        channel = join(me, config, own, insecure_plain)
        with aborting(channel):
            agree(program.digest, me, channel, None)
            party = (
                Client(program, channel.session, send_key(program, channel, key)) if key
                else Server(program, channel.session, receive_key(program, channel))
            )  # fmt: skip
            walk = PaillierWalk(party, ahead)
    return Session(program, {me: walk}, {me: channel})


def send_key(program: EncryptedProgram, channel: Channel, key: PrivateKey) -> PrivateKey:
    """Sends the public key of the client, which gets its own back."""
    (peer,), size = channel.peers, key_bytes(program.settings["key_bits"])
    channel.exchange(PAILLIER_KEY, {peer: [key_text(key, size)]}, {})
    return key


def receive_key(program: EncryptedProgram, channel: Channel) -> PublicKey:
    """The client's public key. Raises Mismatch."""
    (peer,), size = channel.peers, key_bytes(program.settings["key_bits"])
    received = channel.exchange(PAILLIER_KEY, {}, {peer: size})
    return read_key(received[peer].numpy().tobytes(), peer, program.settings)
