#!/usr/bin/env bash
# asyncio's documentation says that transport.abort() closes the transport immediately. Over TLS it does nothing at all
# if close() was called twice before, which is otherwise allowed: the second close() lets the transport forget its
# connection. A server whose client does not answer the end of TLS then keeps the connection for 30 s more
# (ssl_shutdown_timeout), though it was told to abort it; asked again, it has forgotten it as well.
#   seen with CPython 3.11.7, a client that keeps its side open, 3 s after abort():
#     close(), abort()            connection_lost was called
#     close(), close(), abort()   connection_lost was not called
# The front of a service closes a connection once, and then aborts it (securemodel/service/connections.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet trustme==1.2.1
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import platform
import socket
import ssl

import trustme

authority = trustme.CA()
at_server, at_client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
authority.issue_cert("localhost").configure_cert(at_server)
authority.configure_trust(at_client)


class Server(asyncio.Protocol):
    def __init__(self):
        self.made, self.lost = asyncio.Event(), asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        self.made.set()

    def connection_lost(self, error):
        self.lost.set()


def silent_client(port):
    return at_client.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")


async def is_lost(closes):
    loop, protocol = asyncio.get_running_loop(), Server()
    server = await loop.create_server(lambda: protocol, "127.0.0.1", 0, ssl=at_server)
    client = await loop.run_in_executor(None, silent_client, server.sockets[0].getsockname()[1])
    await protocol.made.wait()
    for _ in range(closes):
        protocol.transport.close()
    await asyncio.sleep(0.2)
    protocol.transport.abort()
    try:
        await asyncio.wait_for(protocol.lost.wait(), 3)
        return True
    except asyncio.TimeoutError:
        return False
    finally:
        client.close()
        server.close()


print(platform.python_implementation(), platform.python_version())
found = [asyncio.run(is_lost(closes)) for closes in (1, 2)]
for closes, lost in zip((1, 2), found, strict=True):
    print(f"closed {closes} times, then aborted: connection_lost was {'' if lost else 'not '}called")
assert found == [True, False], found
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
