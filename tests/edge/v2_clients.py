"""Asks a gateway with tritonclient and kserve, as their users do, and prints what came out as JSON.

Run by test_gateway.py in a process of its own: v2_clients.py URL. Of kserve the client is real; packages of its server
that the client imports, but does not use, are stood in for.
"""

from __future__ import annotations

import asyncio
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import ml_dtypes
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

URL = sys.argv[1]
X = np.array([[2, 4, 6], [0.1, -0.5, 8]], dtype=np.float32)
SERVER = ("cloudevents", "fastapi", "google", "grpc", "kserve.protocol.grpc", "pandas", "psutil", "yaml")


class Stand(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages of kserve's server."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        there = any(name == top or name.startswith(f"{top}.") for top in SERVER)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if there else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return MagicMock(__path__=[], InferParameter=type("InferParameter", (), {}))

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stand_in() -> None:
    """Lets modules of kserve be imported one by one, without all that `import kserve` brings."""
    folder = importlib.util.find_spec("kserve").submodule_search_locations
    sys.modules["kserve"] = types.ModuleType("kserve")
    sys.modules["kserve"].__path__ = list(folder)
    sys.meta_path.insert(0, Stand())


def failure(call: Callable[[], Any]) -> str:
    try:
        return f"no error: {call()}"
    except InferenceServerException as error:
        return error.message()


def of_triton() -> dict[str, Any]:
    client = triton.InferenceServerClient(URL.removeprefix("http://"))

    def tensor(values: np.ndarray, datatype: str, binary: bool = True) -> triton.InferInput:
        made = triton.InferInput("x", list(values.shape), datatype)
        made.set_data_from_numpy(values, binary_data=binary)
        return made

    def infer(made: triton.InferInput, **options: Any) -> Any:
        return client.infer("line", [made], **options).as_numpy("y").tolist()

    def wanted(**options: Any) -> list[triton.InferRequestedOutput]:
        return [triton.InferRequestedOutput("y", **options)]

    text = np.array([["a", "b", "c"]], dtype=object)
    whole = client.infer("line", [tensor(X, "FP32")], request_id="mine", model_version="3")
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("line"),
        "other_ready": client.is_model_ready("other"),
        "server": client.get_server_metadata()["extensions"],
        "metadata": client.get_model_metadata("line"),
        "binary": infer(tensor(X, "FP32")),
        "json": infer(tensor(X, "FP32", binary=False), outputs=wanted(binary_data=False)),
        "json in, binary out": infer(tensor(X, "FP32", binary=False), outputs=wanted(binary_data=True)),
        "fp16": infer(tensor(X.astype(np.float16), "FP16")),
        "fp64": infer(tensor(X.astype(np.float64), "FP64")),
        "bf16": infer(tensor(X.astype(ml_dtypes.bfloat16), "BF16")),
        "int32": infer(tensor(X.astype(np.int32), "INT32")),
        "with a time limit": infer(tensor(X, "FP32"), timeout=5_000_000),
        "answer": {name: whole.get_response()[name] for name in ("id", "model_name", "model_version")},
        "bytes": failure(lambda: infer(tensor(text, "BYTES"))),
        "nan": failure(lambda: infer(tensor(np.array([[1, np.nan, 2]], np.float32), "FP32"))),
        "nan in json": failure(lambda: infer(tensor(np.array([[1, 2, np.nan]], np.float32), "FP32", binary=False))),
        "shape": failure(lambda: infer(tensor(np.zeros((2, 4), np.float32), "FP32"))),
        "model": failure(lambda: client.infer("other", [tensor(X, "FP32")])),
        "classes": failure(lambda: infer(tensor(X, "FP32"), outputs=wanted(class_count=2))),
        "gzip": failure(lambda: infer(tensor(X, "FP32"), request_compression_algorithm="gzip")),
    }


async def of_kserve() -> dict[str, Any]:
    from httpx import HTTPStatusError
    from kserve.inference_client import InferenceRESTClient, RESTConfig
    from kserve.protocol.infer_type import InferInput, InferRequest

    client = InferenceRESTClient(RESTConfig(protocol="v2"))

    async def infer(values: np.ndarray, binary: bool) -> Any:
        made = InferInput("x", list(values.shape), "FP32")
        made.set_data_from_numpy(values, binary_data=binary)
        found = await client.infer(URL, InferRequest("line", [made]), model_name="line")
        return {"name": found.model_name, "y": found.outputs[0].as_numpy().tolist()}

    try:
        message = str(await infer(np.array([[1, np.inf, 2]], np.float32), True))
    except HTTPStatusError as error:
        message = str(error)
    return {
        "live": await client.is_server_live(URL),
        "ready": await client.is_server_ready(URL),
        "model_ready": await client.is_model_ready(URL, "line"),
        "binary": await infer(X, True),
        "json": await infer(X, False),
        "infinite": message,
    }


if __name__ == "__main__":
    found = {"triton": of_triton()}
    stand_in()
    found["kserve"] = asyncio.run(of_kserve())
    print(json.dumps(found))
