"""Everything a peer or a file of another party sends is read or refused: only this project's errors come out.

Each decoder has valid messages to start from. A mutated one is sealed again where the format has a checksum, so that
the checks behind the checksum are met. Nothing here is secret; the keys are small ones that everyone may break.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import identity
from protocols.channel.frame import Label, Purpose, pack_header, parse_header
from protocols.errors import InputError, Mismatch, ProtocolError, SecureModelError
from protocols.files import write_secret
from protocols.paillier import encrypt_array, keyfile, keys, wire
from protocols.paillier.affine import AffineClient, AffineServer, AffineShape
from protocols.paillier.linear_gate import ClientGate, GateShape, ServerGate
from protocols.paillier.patches import linear_patches
from protocols.strict import strict_json
from securemodel.cli import results
from securemodel.engines.masked import dealer
from securemodel.engines.masked.sources import DEAL_RUN, REQUEST
from securemodel.engines.masked.store import Store
from securemodel.engines.paillier.party import read_key
from securemodel.errors import PreprocessingError
from securemodel.sessions import agree, resume

KEY = keys.insecure_generate(256)
PUBLIC = KEY.public
ODD = (
    b"Infinity", b"NaN", b"-Infinity", b"1e999", b"null", b"true", b"-1", b"0", b"9" * 30, b"9" * 5000, b"[" * 3000,
    b'{"a":' * 1000, b'"\\ud800"', b"\\u0000", b'"', b"}", b",", b"\x1b[2J", b"\xff\xfe", b"\0" * 8, b"\xff" * 8,
    b"\0" * 7 + b"\x80", (1 << 62).to_bytes(8, "little"), (1 << 32).to_bytes(8, "little"),
)  # fmt: skip


def plain(data: bytes) -> bytes:
    return data


def sealed_array(data: bytes) -> bytes:
    """With the checksum that bytes of an encrypted array end in."""
    return data[:-32] + sha256(data[:-32]).digest()


def sealed_text(data: bytes) -> bytes:
    """With the checksum that a key's text holds, where it is JSON at all."""
    try:
        fields = json.loads(data)
        fields.pop("sha256", None)
        return json.dumps(
            {**fields, "sha256": sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()}
        ).encode()
    except (ValueError, AttributeError, RecursionError):
        return data


@dataclass(frozen=True)
class Decoder:
    """How bytes are read, valid ones, and how changed ones are sealed again."""

    read: Callable[[bytes], object]
    valid: tuple[bytes, ...]
    seal: Callable[[bytes], bytes] = plain


def array_decoders() -> dict[str, Decoder]:
    """Encrypted arrays and the messages of the engine's gates."""
    one = encrypt_array(KEY, np.arange(6).reshape(2, 3), 4, 8)
    packed = encrypt_array(KEY, np.arange(6).reshape(2, 3), 4, 8, slot_bits=40)
    affine = AffineShape(2, 2, 3, 4, 4.0, 2.0, 256)
    client, server = AffineClient(KEY, affine), AffineServer(affine, np.ones((2, 2)), np.ones(2))
    asked = client.request(np.ones((3, 2)))
    layer, context = GateShape(linear_patches((1, 2), 2), 4), "layer"
    mine, weights = torch.ones((1, 2), dtype=torch.int64), torch.ones((2, 2), dtype=torch.int64)
    gate, owner = ClientGate(KEY, layer, context), ServerGate(PUBLIC, layer, weights, context)
    request = gate.request(mine)
    arrays = (wire.write(one), wire.write(packed), wire.write(one[:0]), wire.write(one.sum()))
    made: dict[str, tuple[Callable[[bytes], object], tuple[bytes, ...]]] = {
        "array": (lambda data: wire.read(data, PUBLIC).decrypt(KEY), arrays),
        "affine request": (lambda data: server.reply(PUBLIC, data), (asked,)),
        "affine reply": (client.finish, (server.reply(PUBLIC, asked),)),
        "gate request": (owner.reply, (request,)),
        "gate reply": (gate.finish, (owner.reply(request)[0],)),
    }
    return {name: Decoder(read, valid, sealed_array) for name, (read, valid) in made.items()}


def text_decoders(folder: Path) -> dict[str, Decoder]:
    """Texts of peers, and of files that came from somewhere else."""
    public, private = keyfile.dump_public(PUBLIC).encode(), keyfile.dump_private(KEY).encode()
    mine = {"program": "ab", "version of securemodel": "1", "script": "", "--protocol": "", "store": "id"}
    store, program = SimpleNamespace(runs=7), SimpleNamespace(digest="d")
    (folder / "store").mkdir(mode=0o700)
    write_secret(folder / "store" / "key", bytes(32), "a key")
    meta = {"version": 3, "id": "x", "party": "bank", "digest": "d", "runs": 7}
    cursor = {"next": 3, "weights": None}

    def opened(name: str, fields: dict[str, object]) -> Callable[[bytes], object]:
        def read(data: bytes) -> None:
            (folder / "store" / "store.json").write_bytes(json.dumps(meta).encode())
            (folder / "store" / "cursor.json").write_bytes(json.dumps(cursor).encode())
            (folder / "store" / "cursor.json").chmod(0o600)
            (folder / "store" / name).write_bytes(data)
            Store.open(folder / "store", program, "bank").close()

        return read

    def journal(data: bytes) -> object:
        (folder / "journal").write_bytes(data)
        (folder / "journal").chmod(0o600)
        return results._read(folder / "journal")

    kept = json.dumps(asdict(resume.Kept("job", 3, 7))).encode().ljust(256)
    rows = json.dumps(asdict(results.Journal("p", job="j", rows=7, done=((0, 3), (4, 7))))).encode()
    agreed = json.dumps({**mine, "next": 3}).encode().ljust(1024)
    settings = {"insecure": True, "key_bits": 256}
    return {
        "strict JSON": Decoder(lambda data: strict_json(data, "a text"), (b'{"a": [1, 2.5, null, "x", {"b": true}]}',)),
        "public key": Decoder(lambda data: keyfile.load_public(data.decode("latin1"), True), (public,), sealed_text),
        "private key": Decoder(lambda data: keyfile.load_private(data.decode("latin1"), True), (private,), sealed_text),
        "client's key": Decoder(lambda data: read_key(data, "client", settings), (public.ljust(640),), sealed_text),
        "agreement": Decoder(lambda data: agree._check(mine, data, "peer", "me", store), (agreed,)),
        "rows kept": Decoder(lambda data: resume._read("peer", data), (kept, b"null".ljust(256))),
        "journal": Decoder(journal, (rows,)),
        "store": Decoder(opened("store.json", meta), (json.dumps(meta).encode(),)),
        "cursor": Decoder(opened("cursor.json", cursor), (json.dumps(cursor).encode(),)),
    }


def other_decoders(folder: Path) -> dict[str, Decoder]:
    """Headers, requests, certificates and lists of parties."""
    for name in ("bank", "hospital"):
        identity.create(name, folder / name)
    certificate = (folder / "bank" / identity.CERTIFICATE_FILE).read_text()
    der = base64.b64decode("".join(line for line in certificate.splitlines() if "-" not in line))
    parties = "".join(
        f'[parties.{name}]\naddress = "127.0.0.1:{port}"\ncertificate = "{name}/identity.crt"\n'
        for name, port in (("bank", 7001), ("hospital", 7002))
    )

    def listed(data: bytes) -> object:
        (folder / "parties.toml").write_bytes(data)
        return identity.load_config(folder / "parties.toml")

    def certified(data: bytes) -> object:
        pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(data) + b"-----END CERTIFICATE-----\n"
        (folder / "changed.crt").write_bytes(pem)
        return listed(parties.replace("bank/identity.crt", "changed.crt").encode())

    def header(data: bytes) -> object:
        return parse_header(data.ljust(32, b"\0")[:32], 3, "peer")

    first = pack_header(3, Label(1, 2, Purpose.OPEN), 99)
    request = REQUEST.pack(5, 0, DEAL_RUN)
    return {
        "header": Decoder(header, (first,)),
        "request": Decoder(lambda data: dealer._request("peer", Label(5, 0, Purpose.REQUEST), data), (request,)),
        "certificate": Decoder(certified, (der,)),
        "parties": Decoder(listed, (parties.encode(),)),
    }


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    folder = tmp_path_factory.mktemp("decoders")
    return {**array_decoders(), **text_decoders(folder), **other_decoders(folder)}


NAMES = (
    "array", "affine request", "affine reply", "gate request", "gate reply", "strict JSON",
    "public key", "private key", "client's key", "agreement", "rows kept", "journal", "store", "cursor", "header",
    "request", "certificate", "parties",
)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few changes: bits, odd values put in or over others, pieces cut out, doubled or exchanged."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, end = sorted((rng.randint(0, len(out)), rng.randint(0, len(out))))
        change = rng.randrange(6)
        if change == 0 and out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif change == 1:
            out[at:at] = rng.choice(ODD)
        elif change == 2:
            odd = rng.choice(ODD)
            out[at : at + len(odd)] = odd
        elif change == 3:
            del out[at:end]
        elif change == 4:
            out[at:at] = out[at : min(end, at + 64)]
        else:  # in JSON: one value for another
            parts = bytes(out).split(b": ")
            where = rng.randrange(len(parts))
            rest = parts[where].partition(b",")
            parts[where] = rng.choice(ODD) + b"".join(rest[1:])
            out = bytearray(b": ".join(parts))
    return bytes(out)


def refused_or_read(decoder: Decoder, data: bytes) -> None:
    try:
        decoder.read(data)
    except SecureModelError as error:
        assert str(error)


@pytest.mark.parametrize("name", NAMES)
def test_valid_messages_are_read(decoders: dict[str, Decoder], name: str) -> None:
    assert set(NAMES) == set(decoders)
    for data in decoders[name].valid:
        decoders[name].read(decoders[name].seal(data))


def fuzz(decoder: Decoder, count: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        data = mutated(rng.choice(decoder.valid), rng)
        refused_or_read(decoder, decoder.seal(data) if rng.random() < 0.8 else data)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_messages_end_in_this_projects_errors(decoders: dict[str, Decoder], name: str) -> None:
    fuzz(decoders[name], 30, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_twenty_thousand_mutated_messages(decoders: dict[str, Decoder], name: str) -> None:
    fuzz(decoders[name], 20_000 // len(NAMES), 2)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), name=st.sampled_from(NAMES))
def test_any_bytes_end_in_this_projects_errors(decoders: dict[str, Decoder], data: bytes, name: str) -> None:
    refused_or_read(decoders[name], data)


SIZES = st.sampled_from([0, 1, 2, 3, 255, 1 << 31, (1 << 32) - 1]) | st.integers(0, (1 << 32) - 1)
LONG = st.sampled_from([0, 1, 2, 6, 1 << 31, 1 << 62, 1 << 63, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)


@settings(max_examples=300, deadline=None)
@given(
    frac_bits=st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(-20, 20), width=SIZES | st.just(255), count=SIZES,
    packed=st.integers(0, 2), shape=st.lists(LONG, max_size=17), bound=st.binary(max_size=40), batch=LONG,
    cells=st.integers(0, 3),
)  # fmt: skip
def test_any_header_of_an_array_ends_in_this_projects_errors(
    frac_bits, width, count, packed, shape, bound, batch, cells
) -> None:
    """Also the shape (0, 2^63), and scales and bounds without a float."""
    fingerprint, context = bytes.fromhex(PUBLIC.fingerprint), wire._context("")
    head = wire._HEADER.pack(
        wire._MAGIC, fingerprint, context, PUBLIC.bits, frac_bits, width, count, packed, len(shape), len(bound), batch
    )
    body = head + b"".join(size.to_bytes(8, "little") for size in shape) + bound + b"\1".ljust(64, b"\0") * cells
    try:
        array = wire.read(body + sha256(body).digest(), PUBLIC)
        assert array.decrypt(KEY).shape == array.shape
    except (ProtocolError, InputError):
        pass


@pytest.mark.parametrize("shape", [(0, 1 << 63), (1 << 63, 0), (0, *[1 << 31] * 15), (1 << 40, 0, 1 << 40)])
def test_a_shape_that_no_array_has_is_refused(shape: tuple[int, ...]) -> None:
    fingerprint = bytes.fromhex(PUBLIC.fingerprint)
    head = wire._HEADER.pack(
        wire._MAGIC, fingerprint, wire._context(""), 256, 0, 255, 1, 0, len(shape), 0, 0
    ) + b"".join(size.to_bytes(8, "little") for size in shape)
    with pytest.raises(ProtocolError, match="not an encrypted array"):
        wire.read(head + sha256(head).digest(), PUBLIC)


@pytest.mark.parametrize("exponent", [10**9, -(10**9), 1 << 80, -(1 << 80), 600, -600, None, 0.5, float("inf"), True])
def test_an_exponent_of_phe_of_any_size_is_refused(exponent: object) -> None:
    phe = pytest.importorskip("phe")
    from protocols.paillier.phe_interop import from_phe, to_phe_public

    theirs = to_phe_public(PUBLIC)
    number = phe.EncryptedNumber(theirs, 1 + int(PUBLIC.n), 0)
    number.exponent = exponent
    with pytest.raises(ProtocolError, match="exponent"):
        from_phe([number, theirs.encrypt(1)], PUBLIC, 4)


def test_numbers_of_phe_that_are_none_are_refused() -> None:
    phe = pytest.importorskip("phe")
    from protocols.paillier.phe_interop import from_phe, to_phe_public

    theirs = to_phe_public(PUBLIC)
    for cipher in (0, -1, 0.5, float("nan"), int(PUBLIC.square), int(PUBLIC.n)):
        with pytest.raises(ProtocolError, match="ciphertext"):
            from_phe([phe.EncryptedNumber(theirs, cipher, 0)], PUBLIC, 4)
    with pytest.raises(InputError, match="no numbers of phe"):
        from_phe([3], PUBLIC, 4)


def test_a_key_of_a_size_that_takes_too_long_to_check_is_refused() -> None:
    fields = {"format": keyfile._PUBLIC, "version": 1, "bits": 32768, "n": f"{(1 << 32768) - 1:x}"}
    with pytest.raises(SecureModelError, match="bits"):
        keyfile.load_public(sealed_text(json.dumps(fields).encode()).decode(), insecure_size=True)


@pytest.mark.parametrize("text", [b"Infinity", b"[" * 5000, b'{"next": NaN}', b'{"job": "x", "job": "y"}'])
def test_what_a_peer_says_is_strict_json(text: bytes) -> None:
    with pytest.raises(Mismatch):
        agree._check({}, text, "peer", "me", None)
    with pytest.raises(Mismatch):
        resume._read("peer", text)


def test_a_store_whose_cursor_is_without_end_is_refused(tmp_path: Path) -> None:
    for name, text in (("key", "x" * 32), ("cursor.json", '{"next": 1e999, "weights": null}'), ("store.json", "{}")):
        write_secret(tmp_path / name, text.encode(), "a store")
    with pytest.raises(PreprocessingError):
        Store.open(tmp_path, SimpleNamespace(digest=""), "bank")
