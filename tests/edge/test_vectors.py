"""The vectors of vectors/share-v1.json, which the page's code and the parties' reader run as well."""

from __future__ import annotations

import json
import runpy
from base64 import urlsafe_b64encode
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from securemodel.edge import recipe, sealing, sharing, wire
from securemodel.edge.errors import InputError, WireError
from securemodel.edge.sealing import Envelope
from securemodel.edge.sharing import Share
from tests.edge.conftest import VECTORS


def ints(texts: list[str]) -> list[int]:
    return [int(text) for text in texts]


def test_the_file_is_what_its_maker_writes() -> None:
    made = runpy.run_path(str(VECTORS / "make.py"))
    assert made["text"]() == (VECTORS / "share-v1.json").read_text(encoding="utf-8")


def test_encode(vectors) -> None:
    for case in vectors["encode"]:
        limit, x = float(case["limit"]), np.array([float(text) for text in case["x"]])
        real = case["kind"] == "real"

        def encode(x: np.ndarray, real: bool = real, case: dict[str, Any] = case, limit: float = limit) -> np.ndarray:
            return sharing.encode(x, case["frac_bits"], limit) if real else sharing.encode_indices(x, limit)

        if "refused" not in case:
            assert encode(x).tolist() == ints(case["e"])
            continue
        with pytest.raises(InputError) as caught:
            encode(x)
        assert f"x[{case['refused']}]" in caught.value.where
        assert repr(x[1]) not in str(caught.value) and case["x"][1] not in str(caught.value)


def test_streams(vectors) -> None:
    for case in vectors["stream"]:
        seed, id = bytes.fromhex(case["seed"]), bytes.fromhex(case["id"])
        found = sharing.expand(seed, id, int(case["tensor"]), int(case["count"]))
        assert found.tolist() == ints(case["values"])


def test_splits(vectors) -> None:
    for case in vectors["split"]:
        id, random = bytes.fromhex(case["id"]), iter(bytes.fromhex(data) for data in case["random"])
        e = np.array(ints(case["e"]))
        parties, seeds = len(case["shares"]), case["form"] == "seed"
        shares = sharing.split(e, parties, id, int(case["tensor"]), seeds=seeds, random=lambda _: next(random))
        assert [share.data.hex() for share in shares] == case["data"], case["name"]
        values = [sharing.values_of(share, id, int(case["tensor"]), e.size) for share in shares]
        assert [found.tolist() for found in values] == [ints(share) for share in case["shares"]]
        assert sharing.add(values).tolist() == ints(case["e"])


def test_sums(vectors) -> None:
    for case in vectors["add"]:
        total = sharing.add([np.array(ints(share)) for share in case["shares"]])
        assert total.tolist() == ints(case["sum"])
        assert sharing.decode(total, case["frac_bits"]).tolist() == [float(x) for x in case["x"]]


def test_requests_are_written_byte_by_byte_and_read_again(vectors) -> None:
    for case in vectors["request"]:
        form, id = case["form"], bytes.fromhex(case["id"])
        tensors = []
        for index, tensor in enumerate(case["tensors"]):
            random = iter(bytes.fromhex(data) for data in tensor["random"])
            e = np.array(ints(tensor["e"]))
            shares = sharing.split(
                e, len(case["headers"]), id, index, seeds=form == "seed", random=lambda _, left=random: next(left)
            )
            tensors.append((tensor["name"], tensor["shape"], shares))
        messages = wire.requests(
            case["id"], case["program"], tensors, int(case["time"]), case["deadline_ms"], commit=case["commit"]
        )
        assert [message.header.decode() for message in messages] == case["headers"]
        assert [message.data.hex() for message in messages] == case["data"]
        for rank, message in enumerate(messages):
            read = wire.read_request(message.header, message.data, rank)
            assert (read.id, read.program, read.commit) == (case["id"], case["program"], case["commit"])
            assert (read.time, read.deadline_ms) == (int(case["time"]), case["deadline_ms"])
            assert [tensor.name for tensor in read.tensors] == [tensor["name"] for tensor in case["tensors"]]
            for share, tensor in zip(read.shares(), case["tensors"], strict=True):
                assert share.shape == tuple(tensor["shape"])
                assert share.reshape(-1).tolist() == ints(tensor["shares"][rank])


def test_what_ties_bodies_together_does_not_follow_from_the_shares() -> None:
    """Else a party could try out which input fits its own share and a digest of the other's."""
    shares = sharing.split(np.array([1, 0, 0]), 2, bytes(16), 0, random=bytes)
    made = [wire.requests("0" * 32, "ab" * 32, [("x", [1, 3], shares)], 1) for _ in range(2)]
    commits = [{json.loads(message.header)["parameters"]["commit"] for message in messages} for messages in made]
    assert [len(one) for one in commits] == [1, 1] and commits[0] != commits[1]


def test_refused_requests(vectors) -> None:
    for case in vectors["refused"]:
        with pytest.raises(WireError) as caught:
            wire.read_request(case["header"].encode(), bytes.fromhex(case["data"]), case["rank"])
        assert caught.value.code == case["code"], case["name"]
        assert caught.value.fix or caught.value.code == "shape"


def test_answers_are_read_and_written_byte_by_byte(vectors) -> None:
    for case in vectors["answer"]:
        for header, data in zip(case["headers"], case["data"], strict=True):
            read = wire.read_answer(header.encode(), bytes.fromhex(data))
            again = wire.answer(read)
            assert (again.header.decode(), again.data.hex()) == (header, data)


def test_recipes(vectors) -> None:
    for case in vectors["recipe"]:
        x = np.array([float(text) for text in case["x"]]).reshape(case["shape"])
        found = recipe.apply(recipe.read(case["recipe"], "x"), x, "x")
        assert list(found.shape) == case["result_shape"], case["recipe"]
        np.testing.assert_allclose(found.reshape(-1), [float(text) for text in case["result"]], rtol=0, atol=1e-9)


def test_sealed_parts(vectors) -> None:
    for case in vectors["seal"]:
        private = X25519PrivateKey.from_private_bytes(bytes.fromhex(case["private_key"]))
        envelope = Envelope(case["id"], case["model"], case["key_id"], case["response_key"], {})
        info = envelope.info(case["direction"], case["rank"])
        assert info.hex() == case["info"] and b64(bytes.fromhex(case["public_key"])) == sealing.public_of(private)
        assert sealing.unseal(private, info, bytes.fromhex(case["sealed"])).hex() == case["plain"]
        again = sealing.seal(sealing.public_of(private), info, bytes.fromhex(case["plain"]))
        assert sealing.unseal(private, info, again).hex() == case["plain"] and again.hex() != case["sealed"]
        for other in (envelope.info("answer", 0), info[:-1], info + b"0"):
            with pytest.raises(WireError, match="cannot be opened"):
                sealing.unseal(private, other, bytes.fromhex(case["sealed"]))


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_share_shows_nothing_of_itself() -> None:
    share = Share("values", b"secret bytes")
    assert "secret" not in repr(share)
