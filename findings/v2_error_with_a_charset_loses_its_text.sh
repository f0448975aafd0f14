#!/usr/bin/env bash
# kserve's client of the Open Inference Protocol v2 shows the "error" of a refused request only if its Content-Type is
# application/json to the letter. With "; charset=utf-8" behind it, as many servers and proxies write, with a capital
# letter, or as application/problem+json (RFC 9457), the exception says the status alone: its text begins with the comma
# that should follow the reason. A server that answers problems of RFC 9457 with an "error" beside them, which
# tritonclient shows whatever the type, leaves users of kserve without the reason.
#   seen with kserve 0.21.0, httpx 0.28.1, CPython 3.11; a 400 with {"error": "x must be [1,784]"}:
#     application/json                   x must be [1,784], '400 Bad Request' for url …
#     application/json; charset=utf-8    , '400 Bad Request' for url …
#     Application/JSON                   , '400 Bad Request' for url …
#     application/problem+json           , '400 Bad Request' for url …
# The whole answer is in the exception's response.text. `securemodel edge gateway` therefore answers errors as
# application/json to the letter. kserve brings its server with it: the installation takes half a gigabyte.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet kserve==0.21.0 httpx==0.28.1 numpy==2.2.6
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

REASON = "x must be [1,784]"
SHOWN = {
    "application/json": True,
    "application/json; charset=utf-8": False,
    "Application/JSON": False,
    "application/problem+json": False,
}


class Server(BaseHTTPRequestHandler):
    """Refuses every request, in the type that the name of the model asks for."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        data = json.dumps({"title": "shape", "status": 400, "error": REASON}).encode()
        self.send_response(400)
        self.send_header("Content-Type", list(SHOWN)[int(self.path.split("/")[3])])
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


async def refusals(url):
    tensor, found = InferInput("x", [1, 2], "FP32"), []
    tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        for index in range(len(SHOWN)):
            try:
                await client.infer(url, InferRequest(str(index), [tensor]), model_name=str(index))
            except httpx.HTTPStatusError as error:
                assert REASON in error.response.text
                found.append(str(error))
    return found


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
found = asyncio.run(refusals(f"http://127.0.0.1:{server.server_address[1]}"))
print("kserve", version("kserve"), "httpx", version("httpx"))
for kind, message in zip(SHOWN, found, strict=True):
    print(f"{kind}: {message}")
assert [REASON in message for message in found] == list(SHOWN.values()), found
assert all(message.startswith(", '400 Bad Request'") for message in found[1:]), found
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
