#!/usr/bin/env bash
# tritonclient's infer() takes headers, such as an Authorization that all requests share, and writes into that very
# dictionary. What one request needs stays there and describes the next one: a request with its numbers in JSON goes out
# with the Inference-Header-Content-Length of the binary request before it, a plain one with the Content-Encoding of the
# compressed one before it. A server that follows the protocol must then refuse a request that is right by itself.
#   seen with tritonclient 2.73.0, CPython 3.11, in the same way by tritonclient.http and tritonclient.http.aio:
#     binary, then JSON     a dictionary for each: 8.0, 8.0      one for both: 8.0, error
#     gzip, then plain      a dictionary for each: 8.0, 8.0      one for both: 8.0, error
# docs/api.md tells users of `securemodel edge gateway` to give every request a dictionary of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet "tritonclient[http]==2.73.0" numpy==2.2.6
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import gzip
import inspect
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import numpy as np
import tritonclient.http as blocking
import tritonclient.http.aio as waiting
from tritonclient.utils import InferenceServerException


class Server(BaseHTTPRequestHandler):
    """Answers the sum of the input x, as the headers and the body say it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            status, answer = 200, self.answer(body)
        except (OSError, ValueError) as error:
            status, answer = 400, {"error": f"{type(error).__name__}: {error}"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, body):
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
        if length > len(body):
            raise ValueError(f"{length} bytes of JSON are not in a body of {len(body)}")
        tensor = json.loads(body[:length])["inputs"][0]
        values = tensor["data"] if "data" in tensor else np.frombuffer(body[length:], "<f4")
        output = {"name": "y", "shape": [1], "datatype": "FP32", "data": [float(np.sum(values))]}
        return {"model_name": "sum", "outputs": [output]}

    def log_message(self, *_):
        pass


REQUESTS = {
    "binary, JSON": ({"binary": True}, {"binary": False}),
    "gzip, plain": ({"binary": True, "compression": "gzip"}, {"binary": True}),
}


def arguments(headers, binary, compression=None):
    tensor = blocking.InferInput("x", [8], "FP32")
    tensor.set_data_from_numpy(np.ones(8, np.float32), binary_data=binary)
    wanted = blocking.InferRequestedOutput("y", binary_data=False)
    told = {"outputs": [wanted], "headers": headers, "request_compression_algorithm": compression}
    return ("sum", [tensor]), told


def dictionaries(shared):
    one = {"Authorization": "Bearer abc"}
    return lambda: one if shared else dict(one)


async def ask(package, url, requests, shared):
    client, headers, found = package.InferenceServerClient(url), dictionaries(shared), []
    for request in requests:
        given, told = arguments(headers(), **request)
        try:
            answer = client.infer(*given, **told)
            answer = await answer if inspect.isawaitable(answer) else answer
            found.append(float(answer.as_numpy("y")[0]))
        except InferenceServerException as error:
            print("   ", error.message())
            found.append("error")
    closed = client.close()
    if inspect.isawaitable(closed):
        await closed
    return found


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"127.0.0.1:{server.server_address[1]}"
print("tritonclient", version("tritonclient"))
for name, requests in REQUESTS.items():
    for shared in (False, True):
        found = [asyncio.run(ask(package, url, requests, shared)) for package in (blocking, waiting)]
        print(f"{name}; {'one dictionary' if shared else 'a dictionary for each'}: {found}")
        assert found == [[8.0, "error" if shared else 8.0]] * 2, found
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
