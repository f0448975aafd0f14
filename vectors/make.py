"""Writes share-v1.json: what client and parties send each other, by example.

It is made with whole numbers and fractions of Python alone, and with AES on single blocks, so that it is independent of
the code that it tests. Every number is a text, since many JSON readers keep 53 bits. Run it from anywhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from base64 import urlsafe_b64encode
from fractions import Fraction
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FILE = Path(__file__).with_name("share-v1.json")
WORD = 2**64
ID = "000102030405060708090a0b0c0d0e0f"


def signed(value: int) -> int:
    """The representative of a residue modulo 2^64 that an int64 shows."""
    return (value + WORD // 2) % WORD - WORD // 2


def texts(values: list[int]) -> list[str]:
    return [str(signed(value)) for value in values]


def little(values: list[int]) -> bytes:
    return b"".join((value % WORD).to_bytes(8, "little") for value in values)


def material(label: str, size: int) -> bytes:
    """Bytes that look random and are the same on every machine."""
    blocks = (hashlib.sha256(f"{label} {n}".encode()).digest() for n in range(size // 32 + 1))
    return b"".join(blocks)[:size]


def compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# ---- fixed point
def encode(x: str, frac_bits: int) -> int:
    return round(Fraction(float(x)) * 2**frac_bits)


def encodings() -> list[dict[str, Any]]:
    half, third = 2.0**-17, 1 / 3
    real = [
        (16, 32768.0, ["0.0", "-0.0", "1.0", "-1.0", "0.5", repr(third), repr(-third), "32768.0", "-32768.0"]),
        (16, 32768.0, [repr(k * half) for k in (1, 3, 5, -1, -3, -5)]),  # half-way: to even
        (16, 32768.0, [repr(math.nextafter(half, 1)), repr(math.nextafter(half, 0)), "1e-300", "-5e-324"]),
        (16, 32768.0, [repr(0.10000000149011612), "65535.0e-1", repr(2.0**-16)]),
        (0, 2.0**53, ["9007199254740992.0", "-9007199254740992.0", "0.5", "1.5", "2.5", "-2.5"]),
        (30, 2.0**32, ["4294967296.0", "-4294967296.0", repr(4294967296.0 - 2.0**-20), repr(2.0**-31)]),
        (12, 2.0**50, [repr(2.0**50), repr(-(2.0**50)), repr(2.0**50 - 2.0**-2)]),
    ]
    index = [(30522.0, ["0", "1", "30522"])]
    refused = [
        ("real", 16, 32768.0, x)
        for x in ("NaN", "Infinity", "-Infinity", repr(math.nextafter(32768.0, math.inf)), "-32769.0", "1e308")
    ] + [("index", 0, 100.0, x) for x in ("NaN", "-1", "101", "0.5")]
    return (
        [
            {
                "kind": "real",
                "frac_bits": bits,
                "limit": repr(limit),
                "x": xs,
                "e": texts([encode(x, bits) for x in xs]),
            }
            for bits, limit, xs in real
        ]
        + [
            {"kind": "index", "frac_bits": 0, "limit": repr(limit), "x": xs, "e": texts([int(x) for x in xs])}
            for limit, xs in index
        ]
        + [
            {"kind": kind, "frac_bits": bits, "limit": repr(limit), "x": ["0", x], "refused": "1"}
            for kind, bits, limit, x in refused
        ]
    )


# ---- seeds and shares
def stream(seed: bytes, id: bytes, tensor: int, count: int) -> list[int]:
    prefix = hashlib.sha256(b"securemodel share 1" + id + tensor.to_bytes(4, "little")).digest()[:8]
    block = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    data = b"".join(block.update(prefix + n.to_bytes(8, "big")) for n in range((count + 1) // 2))
    return [int.from_bytes(data[8 * n : 8 * n + 8], "little") for n in range(count)]


def streams() -> list[dict[str, Any]]:
    cases = [(bytes(32), "00" * 16, 0, 4), (bytes(range(32)), ID, 0, 5), (bytes(range(32)), ID, 1, 5),
             (material("seed", 32), ID, 2**32 - 1, 1), (material("seed", 32), "ff" * 16, 7, 33)]  # fmt: skip
    return [
        {"seed": seed.hex(), "id": id, "tensor": str(tensor), "count": str(count),
         "values": texts(stream(seed, bytes.fromhex(id), tensor, count))}
        for seed, id, tensor, count in cases
    ]  # fmt: skip


EDGES = [0, 1, -1, 2**16 - 1, 2**31, 2**32 - 1, 2**32, -(2**32), 2**62, 2**63 - 1, -(2**63), -(2**63) + 1]


def shares_of(e: list[int], random: list[bytes], form: str, id: bytes, tensor: int) -> list[list[int]]:
    """Shares of e for each rank; `random` has the bytes that the ranks from 1 get."""
    words = [int.from_bytes(data[at : at + 8], "little") for data in random for at in range(0, len(data), 8)]
    others = (
        [stream(seed, id, tensor, len(e)) for seed in random]
        if form == "seed"
        else [words[len(e) * n : len(e) * (n + 1)] for n in range(len(random))]
    )
    first = [value - sum(column) for value, *column in zip(e, *others, strict=True)]
    return [first, *others]


def splits() -> list[dict[str, Any]]:
    out = []
    for n in (2, 3, 5):
        for form in ("seed", "values"):
            size = 32 if form == "seed" else 8 * len(EDGES)
            random = [material(f"split {n} {form} {rank}", size) for rank in range(1, n)]
            out.append((f"{n} parties, {form}", EDGES, random, form))
    carries = [2**32, 0, -1, 2**63 - 1, -(2**63)]
    borrow = little([1, 2**32 - 1, 2**32, 2**63, -(2**63) + 1])
    out.append(("borrows at 2^32 and 2^63", carries, [borrow], "values"))
    out.append(("a share of zeros", carries, [bytes(40)], "values"))
    out.append(("a share of ones", carries, [b"\xff" * 40], "values"))
    found = []
    for name, e, random, form in out:
        shares = shares_of(e, random, form, bytes.fromhex(ID), 0)
        found.append(
            {"name": name, "id": ID, "tensor": "0", "form": form, "e": texts(e), "random": [r.hex() for r in random],
             "shares": [texts(share) for share in shares], "data": [little(shares[0]).hex(), *(r.hex() for r in random)]}
        )  # fmt: skip
    return found


def additions() -> list[dict[str, Any]]:
    cases = [
        (16, [[2**32 - 1, 2**63 - 1, -(2**63), -1, 5], [1, 1, -1, 1, -5]]),
        (16, [[2**62, 2**31, 0], [2**62, 2**31, 0], [2**62, 2**32, -1]]),
        (32, [[-1, 2**32, 3], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 2**32, -(2**33)]]),
        (0, [[7, -(2**53)], [-4, 0]]),
    ]
    out = []
    for bits, shares in cases:
        total = [signed(sum(column)) for column in zip(*shares, strict=True)]
        decoded = [repr(float(Fraction(value, 2**bits))) for value in total]
        out.append({"frac_bits": bits, "shares": [texts(s) for s in shares], "sum": texts(total), "x": decoded})
    return out


# ---- messages
def tensor(name: str, shape: list[int], size: int, share: str) -> dict[str, Any]:
    parameters = {"binary_data_size": size, "share": share}
    return {"name": name, "shape": shape, "datatype": "INT64", "parameters": parameters}


def messages() -> list[dict[str, Any]]:
    """Whole requests: the encoded tensors, the random bytes by tensor and rank, and each party's header and bytes."""
    cases = [
        ("one tensor, two parties, a seed", 2, "seed", [("x", [1, 3], [65536, -1, 2**40])]),
        ("two tensors, three parties, seeds", 3, "seed", [("x", [2, 2], [1, 2, 3, 4]), ("ids", [2], [7, 0])]),
        ("values for all", 2, "values", [("größe", [1, 2, 1], [-(2**63), 2**63 - 1])]),
    ]
    out = []
    for name, n, form, tensors in cases:
        program, when = material(name, 32).hex(), 1764516151000
        randoms = [
            [material(f"{name} {t} {rank}", 32 if form == "seed" else 8 * len(e)) for rank in range(1, n)]
            for t, (_, _, e) in enumerate(tensors)
        ]
        shares = [shares_of(e, randoms[t], form, bytes.fromhex(ID), t) for t, (_, _, e) in enumerate(tensors)]
        parts = [[little(shares[t][0]), *randoms[t]] for t in range(len(tensors))]
        datas = [b"".join(part[rank] for part in parts) for rank in range(n)]
        told = {
            "securemodel": 1,
            "program": program,
            "commit": material(f"{name} commit", 32).hex(),
            "time": when,
            "deadline_ms": 2000,
        }
        headers = [
            compact({"id": ID, "inputs": inputs, "parameters": told})
            for inputs in (
                [tensor(title, shape, len(parts[t][rank]), "values" if rank == 0 else form)
                 for t, (title, shape, _) in enumerate(tensors)]
                for rank in range(n)
            )
        ]  # fmt: skip
        out.append(
            {"name": name, "id": ID, "program": program, "time": str(when), "deadline_ms": 2000, "form": form,
             "tensors": [{"name": title, "shape": shape, "e": texts(e), "random": [r.hex() for r in randoms[t]],
                          "shares": [texts(share) for share in shares[t]]}
                         for t, (title, shape, e) in enumerate(tensors)],
             "commit": told["commit"], "headers": [header.decode() for header in headers],
             "data": [data.hex() for data in datas]}
        )  # fmt: skip
    return out


def answers() -> list[dict[str, Any]]:
    """Answers of all parties, what they add up to, and pairs that must not be added."""
    first, second = [2**63, 5, 2**32 - 1], [-(2**63) + 65536, -98309, 1]

    def header(version: str = "3", run: str = "0123456789abcdef:41", row: int = 17) -> str:
        output = {"name": "y", "shape": [1, 3], "datatype": "INT64",
                  "parameters": {"binary_data_size": 24, "frac_bits": 16}}  # fmt: skip
        return compact(
            {"id": ID, "model_name": "lenet5", "model_version": version, "outputs": [output],
             "parameters": {"run": run, "row": row, "batch": 32}}
        ).decode()  # fmt: skip

    total = [signed(a + b) for a, b in zip(first, second, strict=True)]
    data = [little(first).hex(), little(second).hex()]
    good = {"name": "added", "headers": [header(), header()], "data": data, "sum": texts(total),
            "x": [repr(float(Fraction(value, 2**16))) for value in total],
            "run": "0123456789abcdef:41", "row": "17", "version": "3"}  # fmt: skip
    others = {"run": header(run="0123456789abcdef:42"), "row": header(row=18), "version": header(version="4")}
    bad = [
        {"name": f"another {what}", "headers": [header(), other], "data": data, "refused": what}
        for what, other in others.items()
    ]
    return [good, *bad]


def refusals() -> list[dict[str, Any]]:
    """Requests that a party of the given rank refuses, with the code that it answers."""
    program, data = material("program", 32).hex(), little([65536, -1, 2**40])
    told = {"securemodel": 1, "program": program, "commit": material("commit", 32).hex(), "time": 1764516151000}

    def case(name: str, code: str, rank: int = 0, body: bytes = data, **changes: Any) -> dict[str, Any]:
        header = {"id": ID, "inputs": [tensor("x", [1, 3], 24, "values")], "parameters": told} | changes
        return {"name": name, "code": code, "rank": rank, "header": compact(header).decode(), "data": body.hex()}

    def inputs(**changes: Any) -> list[dict[str, Any]]:
        return [tensor("x", [1, 3], 24, "values") | changes]

    def text(name: str, header: str) -> dict[str, Any]:
        return {"name": name, "code": "bad_header", "rank": 0, "header": header, "data": data.hex()}

    good = compact({"id": ID, "inputs": inputs(), "parameters": told}).decode()
    plain = {"binary_data_size": 12}
    return [
        case("FP32", "plaintext_refused", inputs=inputs(datatype="FP32", parameters=plain), body=data[:12]),
        case("INT64 that is no share", "plaintext_refused", inputs=inputs(parameters={"binary_data_size": 24})),
        case("numbers in the JSON", "plaintext_refused", inputs=inputs(data=[1, 2, 3]), body=b""),
        case("FP32 without an id", "plaintext_refused", id=None, inputs=inputs(datatype="FP32", parameters=plain)),
        case("a seed for the first party", "bad_header", inputs=[tensor("x", [1, 3], 32, "seed")], body=bytes(32)),
        case("a seed of 31 bytes", "bad_header", 1, inputs=[tensor("x", [1, 3], 31, "seed")], body=bytes(31)),
        case("an unknown form of share", "bad_header", inputs=[tensor("x", [1, 3], 24, "secret")]),
        case("a byte too few", "bad_header", body=data[:-1]),
        case("a byte too many", "bad_header", body=data + b"\0"),
        case("a size that lies", "bad_header", inputs=[tensor("x", [1, 4], 24, "values")]),
        case("a negative size", "shape", inputs=[tensor("x", [1, -3], 24, "values")]),
        case("no rows", "shape", inputs=[tensor("x", [0, 3], 24, "values")]),
        case("no shape", "shape", inputs=[tensor("x", [], 24, "values")]),
        case("a size that is no whole number", "shape", inputs=inputs(shape=[1, 3.0])),
        case("a size that is a truth value", "shape", inputs=inputs(shape=[True, 3])),
        case("different rows", "shape", inputs=[tensor("x", [1, 1], 8, "values"), tensor("z", [2, 1], 16, "values")]),
        case("one name twice", "bad_header", inputs=[tensor("x", [1, 1], 8, "values"), tensor("x", [1, 2], 16, "values")]),
        case("no inputs", "bad_header", inputs=[], body=b""),
        case("an id in upper case", "bad_header", id=ID.upper()),
        case("an id with dashes", "bad_header", id="00010203-0405-0607-0809-0a0b0c0d0e0f"),
        case("a short id", "bad_header", id=ID[:-1]),
        case("another version", "bad_header", parameters=told | {"securemodel": 2}),
        case("no program", "bad_header", parameters={k: v for k, v in told.items() if k != "program"}),
        case("a commit that is no digest", "bad_header", parameters=told | {"commit": "00"}),
        case("no time", "bad_header", parameters={k: v for k, v in told.items() if k != "time"}),
        case("a time in text", "bad_header", parameters=told | {"time": "1764516151000"}),
        case("a deadline of 0", "bad_header", parameters=told | {"deadline_ms": 0}),
        case("a deadline beyond a minute", "bad_header", parameters=told | {"deadline_ms": 60001}),
        text("a member twice", good[:-1] + ',"id":"' + ID + '"}'),
        text("NaN", good.replace("1764516151000", "NaN")),
        text("half a header", good[: len(good) // 2]),
        text("a list", "[]"),
        text("2000 brackets", "[" * 2000),
    ]  # fmt: skip


# ---- sealing for the relay: RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM
def extract(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + key, "sha256")


def expand(suite: bytes, key: bytes, label: bytes, info: bytes, size: int) -> bytes:
    message = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(key, message + b"\1", "sha256")[:size]


def seal(private: bytes, receiver: bytes, info: bytes, plain: bytes) -> bytes:
    """The sender's public key and the sealed text, with the sender's one-time key given."""
    kem, suite = b"KEM" + bytes.fromhex("0020"), b"HPKE" + bytes.fromhex("002000010001")
    own = X25519PrivateKey.from_private_bytes(private)
    enc = own.public_key().public_bytes_raw()
    agreed = own.exchange(X25519PublicKey.from_public_bytes(receiver))
    shared = expand(kem, extract(kem, b"", b"eae_prk", agreed), b"shared_secret", enc + receiver, 32)
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    secret = extract(suite, shared, b"secret", b"")
    key, nonce = expand(suite, secret, b"key", context, 16), expand(suite, secret, b"base_nonce", context, 12)
    return enc + AESGCM(key).encrypt(nonce, plain, None)


def seals() -> list[dict[str, Any]]:
    out = []
    for direction, rank, plain in (("request", 1, b"a share"), ("request", 2, bytes(64)), ("answer", 1, b"")):
        receiver = X25519PrivateKey.from_private_bytes(material(f"receiver {rank}", 32))
        response = X25519PrivateKey.from_private_bytes(material("response", 32)).public_key().public_bytes_raw()
        public = receiver.public_key().public_bytes_raw()
        facts = [b"securemodel relay 1", direction.encode(), bytes.fromhex(ID), b"lenet5", b"8f434346648f6b96",
                 rank.to_bytes(4, "little"), response]  # fmt: skip
        info = b"".join(len(fact).to_bytes(4, "little") + fact for fact in facts)
        ephemeral = material(f"ephemeral {direction} {rank}", 32)
        out.append(
            {"direction": direction, "id": ID, "model": "lenet5", "key_id": "8f434346648f6b96", "rank": rank,
             "response_key": urlsafe_b64encode(response).rstrip(b"=").decode(), "info": info.hex(),
             "private_key": material(f"receiver {rank}", 32).hex(), "public_key": public.hex(),
             "ephemeral_private_key": ephemeral.hex(), "plain": plain.hex(),
             "sealed": seal(ephemeral, public, info, plain).hex()}
        )  # fmt: skip
    return out


# ---- what a client does to its input first
def triangle(size: int, out: int) -> list[list[Fraction]]:
    """Weights of a row of `size` pixels in each of `out`: linear between centers, widened where pixels get fewer."""
    scale, width = Fraction(size, out), max(Fraction(1), Fraction(size, out))
    rows = [[max(Fraction(0), 1 - abs((n + Fraction(1, 2)) - (o + Fraction(1, 2)) * scale) / width)
             for n in range(size)] for o in range(out)]  # fmt: skip
    return [[weight / sum(row) for weight in row] for row in rows]


def recipes() -> list[dict[str, Any]]:
    """Steps on one row. Results are near these, within 1e-9."""

    def case(
        steps: list[Any], shape: list[int], x: list[Fraction | int], to: list[int], y: list[Any]
    ) -> dict[str, Any]:
        return {"recipe": steps, "shape": [1, *shape], "x": [repr(float(v)) for v in x],
                "result_shape": [1, *to], "result": [repr(float(v)) for v in y]}  # fmt: skip

    picture = [k * k % 23 for k in range(24)]
    down, across = triangle(4, 2), triangle(6, 9)
    resized = [sum(down[i][a] * across[j][b] * picture[6 * a + b] for a in range(4) for b in range(6))
               for i in range(2) for j in range(9)]  # fmt: skip
    weights = (Fraction("0.299"), Fraction("0.587"), Fraction("0.114"))
    gray = [sum(w * v for w, v in zip(weights, (k, k + 10, 3 * k), strict=True)) for k in range(4)]
    colors = [*range(4), *range(10, 14), *range(0, 12, 3)]
    return [
        case([["divide", 255.0]], [3], [0, 51, 255], [3], [0, Fraction(1, 5), 1]),
        case([["divide", [2.0, 4.0]], ["subtract", [1.0, -1.0]]], [2, 1, 2], [2, 4, 8, 16], [2, 1, 2], [0, 1, 3, 5]),
        case([["clamp", -1.0, 2.0]], [4], [-3, -1, 1, 7], [4], [-1, -1, 1, 2]),
        case([["grayscale"]], [3, 2, 2], colors, [1, 2, 2], gray),
        case([["resize", 2, 9]], [1, 4, 6], picture, [1, 2, 9], resized),
        case([["one_hot", 4]], [3], [2, 0, 3], [3, 4], [0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1]),
        case([["pad_ids", 5, 1]], [3], [9, 8, 7], [5], [9, 8, 7, 1, 1]),
    ]


def everything() -> dict[str, Any]:
    return {
        "about": "What client and parties of a service send each other, by example. Numbers that may pass 2^53 or that "
        "are no integers are texts; bytes are hexadecimal. Made by vectors/make.py.",
        "version": 1,
        "encode": encodings(), "stream": streams(), "split": splits(), "add": additions(), "request": messages(),
        "answer": answers(), "refused": refusals(), "seal": seals(), "recipe": recipes(),
    }  # fmt: skip


def text() -> str:
    return json.dumps(everything(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
