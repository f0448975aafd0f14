"""The gateway in front of parties that compute a linear function: ordinary clients, hostile ones, and the command."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from securemodel.cli import main
from securemodel.edge import Client, WireError
from securemodel.service import gateway, plain_tensors
from tests.edge.fake import CARD, FakeService, linear, refuse

ROOT = Path(__file__).parents[2]
X = np.array([[2, 4, 6], [0.1, -0.5, 8]], dtype=np.float32)
Y = linear(X)


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    found = FakeService()
    yield found
    found.close()


@pytest.fixture(scope="module")
def port(service: FakeService) -> Iterator[int]:
    """A gateway to the service, at this port of loopback."""
    with Client(service.document()) as client:
        made = gateway.app(client, timeout_s=5.0, hosts=frozenset({"127.0.0.1", "localhost"}))
        server = uvicorn.Server(uvicorn.Config(made, port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def call() -> Callable[..., Result]:
    """Calls `securemodel` with these words."""
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


def ask(port: int, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """As tritonclient does: without content type and Accept."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(
        "GET" if body is None else "POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()}
    )
    response = connection.getresponse()
    found = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return found


def infer(port: int, header: Any, data: bytes | None = None, path: str = "/v2/models/line/infer", **headers: str):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if data is not None:
        headers["Inference-Header-Content-Length"] = str(len(text))
    return ask(port, path, text + (data or b""), **headers)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": X.tolist()} | changes


# ---- the real clients
def test_tritonclient_and_kserve_are_answered_unchanged(port: int) -> None:
    clients = ROOT / "build" / "clients"
    assert clients.is_dir(), "make test installs the clients; by hand: make build/clients/.installed"
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("v2_clients.py"), f"http://127.0.0.1:{port}"],
        check=False, capture_output=True, text=True, env={"PYTHONPATH": str(clients)}, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    triton, kserve = found["triton"], found["kserve"]
    assert triton["live"] and triton["ready"] and triton["model_ready"] and not triton["other_ready"]
    assert triton["server"] == ["binary_tensor_data"]
    assert triton["metadata"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert triton["metadata"]["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
    for way in ("binary", "json", "json in, binary out", "fp64", "with a time limit"):
        np.testing.assert_allclose(triton[way], Y, atol=1e-3)
    np.testing.assert_allclose(triton["fp16"], linear(X.astype(np.float16)), atol=1e-3)
    np.testing.assert_allclose(triton["bf16"], Y, atol=0.05)
    np.testing.assert_allclose(triton["int32"], linear(X.astype(np.int32)), atol=1e-3)
    assert triton["answer"] == {"id": "mine", "model_name": "line", "model_version": "3"}
    assert "datatype" in triton["bytes"] and "FP32" in triton["bytes"]
    assert "x[0, 1]" in triton["nan"] and "not a number" in triton["nan"]
    assert "x[0, 2]" in triton["nan in json"] and "not a number" in triton["nan in json"]
    assert "rows of [3]" in triton["shape"]
    assert "no model 'other'" in triton["model"] and "line" in triton["model"]
    assert "classification" in triton["classes"] and "compressed" in triton["gzip"]
    assert kserve["live"] is True and kserve["ready"] is True and kserve["model_ready"] is True
    for way in ("binary", "json"):
        assert kserve[way]["name"] == "line"
        np.testing.assert_allclose(kserve[way]["y"], Y, atol=1e-3)
    assert "x[0, 1]" in kserve["infinite"] and "infinite" in kserve["infinite"]


# ---- requests by hand
def test_no_content_type_no_id_and_unknown_members(port: int) -> None:
    asked = {
        "inputs": [tensor(data=None, parameters={"binary_data_size": 24})],
        "parameters": {"binary_data_output": True},
    }
    status, headers, body = infer(port, asked | {"model_name": "line", "surplus": [1]}, X.tobytes())
    length = int(headers["inference-header-content-length"])
    header = json.loads(body[:length])
    assert status == 200 and header["model_name"] == "line" and len(header["id"]) == 32
    assert header["outputs"][0]["parameters"] == {"binary_data_size": 16}
    np.testing.assert_allclose(np.frombuffer(body[length:], "<f4").reshape(2, 2), Y, atol=1e-3)


def test_outputs_are_json_unless_binary_ones_are_asked_for(port: int) -> None:
    status, headers, body = infer(port, {"id": "11-22", "inputs": [tensor()]})
    header = json.loads(body)
    assert (status, headers["content-type"], header["id"]) == (200, "application/json", "11-22")
    assert "inference-header-content-length" not in headers
    np.testing.assert_allclose(header["outputs"][0]["data"], Y.reshape(-1), atol=1e-3)
    asked = {"inputs": [tensor()], "parameters": {"binary_data_output": True}}
    asked["outputs"] = [{"name": "y", "parameters": {"binary_data": False}}]
    assert json.loads(infer(port, asked)[2])["outputs"][0]["data"]


def test_an_output_that_is_named_is_as_all_are_asked_for_unless_it_says_itself() -> None:
    named = [{"name": "y"}, {"name": "z", "parameters": {"binary_data": False}}]
    asked = {"inputs": [tensor()], "outputs": named, "parameters": {"binary_data_output": True}}
    assert plain_tensors.read(json.dumps(asked).encode(), None).outputs == {"y": True, "z": False}


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    header = json.dumps({"inputs": [tensor(datatype="BF16", shape=[4], data=None, parameters={"binary_data_size": 8})]})
    asked = plain_tensors.read(header.encode() + bytes.fromhex("803f00c049400080"), len(header))
    assert asked.inputs["x"].tolist() == [1.0, -2.0, 3.140625, -0.0]


@pytest.mark.parametrize("data", [X.tolist(), X.reshape(-1).tolist(), [X[0].tolist(), X[1].tolist()]])
def test_nested_and_flat_data(port: int, data: list[Any]) -> None:
    np.testing.assert_allclose(json.loads(infer(port, {"inputs": [tensor(data=data)]})[2])["outputs"][0]["data"],
                               Y.reshape(-1), atol=1e-3)  # fmt: skip


def test_more_rows_than_a_batch(port: int) -> None:
    many = np.random.default_rng(2).uniform(-5, 5, (21, 3)).astype(np.float32)
    asked = {"inputs": [tensor(shape=[21, 3], data=many.tolist())]}
    np.testing.assert_allclose(
        json.loads(infer(port, asked)[2])["outputs"][0]["data"], linear(many).reshape(-1), atol=1e-3
    )


BAD: dict[str, tuple[Any, bytes | None, int, str]] = {
    "no json": (b"{", None, 400, "cannot be read"),
    "deep": (b"[" * 100_000, None, 400, "cannot be read"),
    "no inputs": ({}, None, 400, "no inputs"),
    "a list": ([], None, 400, "no inputs"),
    "no name": ({"inputs": [{}]}, None, 400, "no name"),
    "ragged": ({"inputs": [tensor(data=[[1, 2], [3]])]}, None, 422, "no list of numbers"),
    "text": ({"inputs": [tensor(data=["1"] * 6)]}, None, 422, "no list of numbers"),
    "no data": ({"inputs": [tensor(data=None)]}, None, 422, "no list of numbers"),
    "NaN": (json.dumps({"inputs": [tensor(data=[1, 2, 3, 4, float("nan"), 6])]}).encode(), None, 422, "x[1, 1]"),
    "Infinity": (json.dumps({"inputs": [tensor(data=[1, 2, 3, 4, float("-inf"), 6])]}).encode(), None, 422, "infinite"),
    "float32 overflows": ({"inputs": [tensor(data=[1e39] * 6)]}, None, 422, "infinite"),
    "fractions of INT32": ({"inputs": [tensor(datatype="INT32", data=[0.5] * 6)]}, None, 422, "whole numbers"),
    "few": ({"inputs": [tensor(data=[1, 2])]}, None, 422, "shape [2, 3]"),
    "another name": ({"inputs": [tensor(name="z")]}, None, 422, "['x']"),
    "another type": ({"inputs": [tensor(datatype="FP8")]}, None, 422, "datatype"),
    "no type": ({"inputs": [tensor(datatype=[])]}, None, 422, "datatype"),
    "a negative size": ({"inputs": [tensor(shape=[-2, -3])]}, None, 422, "whole numbers"),
    "too many": ({"inputs": [tensor(shape=[2**20, 2**20])]}, None, 413, "elements"),
    "short bytes": ({"inputs": [tensor(parameters={"binary_data_size": 24})]}, b"123", 400, "binary_data_size"),
    "wrong bytes": ({"inputs": [tensor(parameters={"binary_data_size": 3})]}, b"123", 422, "not 6 elements"),
    "surplus bytes": ({"inputs": [tensor()]}, b"123", 400, "belong to no input"),
    "shared memory": ({"inputs": [tensor(parameters={"shared_memory_region": "a"})]}, None, 400, "shared memory"),
    "another output": ({"inputs": [tensor()], "outputs": [{"name": "z"}]}, None, 422, "no output 'z'"),
    "classes": ({"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}, None, 400,
                "classification"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_asked_is_refused_by_name(port: int, case: str) -> None:
    header, data, status, says = BAD[case]
    found = infer(port, header, data)
    problem = json.loads(found[2])
    assert found[0] == status and says in problem["error"], problem
    assert problem["status"] == status and problem["code"] and found[1]["content-type"] == "application/json"


def test_lengths_that_lie(port: int) -> None:
    for length in ("99999", "-1", "a", "1e3", "9" * 40):
        status, _, body = ask(port, "/v2/models/line/infer", b"{}", Inference_Header_Content_Length=length)
        assert status == 400 and json.loads(body)["error"]


@pytest.mark.parametrize("length", [0, 7, 1000])
def test_a_length_of_another_request_is_told_apart_from_broken_json(port: int, length: int) -> None:
    text = json.dumps({"inputs": [tensor()]}).encode()
    status, _, body = ask(port, "/v2/models/line/infer", text, Inference_Header_Content_Length=str(length))
    found = json.loads(body)
    assert (status, found["where"]) == (400, "Inference-Header-Content-Length")
    assert f"says {length} bytes of JSON, in a body of {len(text)}" in found["error"] and "or none" in found["fix"]


def test_addresses_and_methods_that_are_not_there(port: int) -> None:
    for path, body, status in (("/", None, 404), ("/v2/models/line/infer", None, 405), ("/v2/models/other", None, 404),
                               ("/v2/models/line/versions/x/infer", b"{}", 404), ("/v2/repository/index", b"{}", 404)):  # fmt: skip
        found = ask(port, path, body)
        assert found[0] == status and json.loads(found[2])["error"], path


def test_pages_of_other_sites_do_not_get_through(port: int) -> None:
    """A page may post to loopback without being asked, and a name that moves to loopback passes for its own site."""
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example:80"}):
        status, found, body = infer(port, {"inputs": [tensor()]}, **headers)
        assert (
            status == 403 and "access-control-allow-origin" not in found and json.loads(body)["code"] == "not_allowed"
        )


def test_refusals_of_parties_pass_through(port: int, service: FakeService) -> None:
    usual = service.parties["hospital"].behave
    bad = refuse("budget", 429, "the rows of today are used up", fix="ask tomorrow", retry_after=3600)
    service.parties["hospital"].behave = lambda *_: bad
    status, headers, body = infer(port, {"inputs": [tensor()]})
    service.parties["hospital"].behave = usual
    problem = json.loads(body)
    assert (status, headers["retry-after"], problem["code"], problem["retry_after"]) == (429, "3600", "budget", 3600)
    assert "hospital refuses: the rows of today are used up" in problem["error"] and "ask tomorrow" in problem["error"]


def test_a_dead_party_is_named(port: int, service: FakeService) -> None:
    at = service.stop("hospital")
    try:
        status, _, body = infer(port, {"inputs": [tensor()]})
        problem = json.loads(body)
        assert (status, problem["code"], problem["parties"]) == (503, "peer_down", ["hospital"])
        assert ask(port, "/v2/health/ready")[0] == 503 and ask(port, "/v2/health/live")[0] == 200
    finally:
        service.start("hospital", at)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80) | st.text().map(str.encode), st.none() | st.integers(0, 100))
def test_odd_bodies_are_wire_errors(body: bytes, length: int | None) -> None:
    with pytest.raises(WireError):
        plain_tensors.read(body, length)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "binary_data_size", "a"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries(
    {}, optional={name: _JSON for name in ("name", "shape", "datatype", "data", "parameters")}
))  # fmt: skip
def test_odd_tensors_are_wire_errors_or_arrays(changes: dict[str, Any]) -> None:
    try:
        asked = plain_tensors.read(json.dumps({"inputs": [tensor() | changes]}).encode(), None)
    except WireError:
        return
    assert all(isinstance(values, np.ndarray) for values in asked.inputs.values())


def test_ids_and_classes_are_whole_numbers() -> None:
    found, _ = plain_tensors.output("y", np.array([[3]]), False)
    assert found == {"name": "y", "datatype": "INT64", "shape": [1, 1], "data": [3]}
    recipes = [([["resize", 28, 28]], (1, 28, 28), (1, -1, -1)), ([["grayscale"], ["divide", 2]], (1, 4, 4), (3, 4, 4)),
               ([["one_hot", 5]], (7, 5), (7,)), ([["pad_ids", 9, 0]], (9,), (-1,)), ([], (3,), (3,))]  # fmt: skip
    for steps, shape, given_shape in recipes:
        assert gateway.given_shape(steps, shape) == given_shape


# ---- the command
def test_the_command_listens_on_loopback_alone_unless_told(call, service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "service.json"
    file.write_text(json.dumps(service.document()))
    result = call("edge", "gateway", file, "--listen", "0.0.0.0:9000")
    assert result.exit_code == 2 and "--expose" in result.output
    result = call("edge", "gateway", file, "--listen", "nonsense")
    assert result.exit_code == 2 and "HOST:PORT" in result.output
    file.write_text("{}")
    result = call("edge", "gateway", file)
    assert result.exit_code == 1 and "service's file is wrong" in result.stderr and "Traceback" not in result.output
    key = tmp_path / "key"
    key.write_text("")
    assert "holds no key" in call("edge", "gateway", file, "--key-file", key).stderr


def test_the_command_answers(call, service: FakeService, tmp_path: Path, monkeypatch) -> None:
    file, key = tmp_path / "service.json", tmp_path / "key"
    monkeypatch.setattr(service, "keys", True)
    file.write_text(json.dumps(service.document()))
    key.write_text("sm-secret\n")
    answers, run = [], uvicorn.Server.run

    def asked(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        """Runs the server until it was asked once."""
        thread = threading.Thread(target=run, args=(server, sockets), daemon=True)
        thread.start()
        answers.append(infer(sockets[0].getsockname()[1], {"inputs": [tensor()]}))
        server.should_exit = True
        thread.join(60)

    monkeypatch.setattr(uvicorn.Server, "run", asked)
    result = call("edge", "gateway", file, "--listen", "127.0.0.1:0", "--key-file", key)
    assert result.exit_code == 0 and answers[0][0] == 200, result.output
    assert re.match(r"http://127\.0\.0\.1:\d+ asks lines \(bank, hospital\)\n$", result.output)
    assert service.parties["bank"].heads[-1]["authorization"] == "Bearer sm-secret"


def test_the_card_of_these_tests_is_one(service: FakeService) -> None:
    assert Client(service.document()).service.model("line").card == CARD
