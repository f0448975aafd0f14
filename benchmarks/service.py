"""`python -m benchmarks.service [--clients N]... [--seconds S]`: a service that strangers ask, from their side.

Two parties and a dealer, each a process of its own with the engine processes that it starts, links over TLS, and clients
over HTTPS with keys: LeNet-5, sizes 1, 8, 32 and 128. The clients share, post to both parties and add the shares up, in
one process; all of it is on this machine. Beside it: the engine alone, sizes 1 and 32, and plain torch behind the same
HTTP server. Processor time a request, by role, says the same on a busy machine. And what restarts take: from the start to
ready, after `kill -9` of each role, and a new version under load.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httptools
import numpy as np
import psutil
import torch
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

import securemodel
from benchmarks.measure import machine
from protocols import identity
from protocols.channel.testing import free_addresses, loopback_parties
from protocols.names import DEALER
from securemodel.edge import sharing, wire
from securemodel.scripts import load_file
from securemodel.service import local, server

EXAMPLE = Path(__file__).parents[1] / "examples" / "service"
WEIGHTS = EXAMPLE.parent / "lenet_mnist" / "lenet5.safetensors"
ROLES = ("clients", "fronts", "engines", "dealer")
_READY_S = 300.0


class Connection(asyncio.Protocol):
    """One kept-alive connection that asks one thing after the other. The parser is the one that uvicorn uses."""

    def __init__(self) -> None:
        self.lost = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionError("closed"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == wire.LENGTH_HEADER.lower().encode():
            self._header_bytes = int(value)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), self._header_bytes, self._body))

    def ask(self, data: bytes) -> asyncio.Future[tuple[int, int, bytes]]:
        """Sends a request; (status, bytes of the JSON header, body) of its answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._parser, self._body, self._header_bytes = httptools.HttpResponseParser(self), b"", 0
        self._transport.write(data)
        return self._answer


async def dial(url: str, context: ssl.SSLContext | None) -> Connection:
    """A connection to a party."""
    place = urlsplit(url)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, place.hostname, place.port, ssl=context)
    return connection


def posted(url: str, path: str, key: str, message: wire.Message) -> bytes:
    """An HTTP request with a message."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/octet-stream\r\n{wire.LENGTH_HEADER}: {len(message.header)}\r\n"
        f"Content-Length: {len(message.body)}\r\n\r\n"
    )
    return head.encode() + message.body


async def client(target: dict[str, Any], rows: np.ndarray, until: float, seen: list[float], codes: Counter) -> None:
    """Asks one row after the other until then: notes milliseconds from the row to its scores, and what went wrong."""
    urls, card, random = target["urls"], target["card"], np.random.default_rng()
    port, path = card["inputs"][0], f"/v2/models/{target['model']}/infer"
    connections = await asyncio.gather(*(dial(url, target["context"]) for url in urls))
    while time.monotonic() < until:
        start = time.perf_counter()
        x = rows[random.integers(len(rows))][None]
        id = os.urandom(16)
        e = sharing.encode(x, port["frac_bits"], port["limit"])
        shares = sharing.split(e, len(urls), id, 0)
        messages = wire.requests(id.hex(), card["digest"], [(port["name"], x.shape, shares)], int(time.time() * 1000))
        try:
            answers = await asyncio.gather(
                *(
                    connection.ask(posted(url, path, target["key"], message))
                    for connection, url, message in zip(connections, urls, messages, strict=True)
                )
            )
        except OSError as error:
            codes[type(error).__name__] += 1
            await asyncio.sleep(0.1)
            connections = await _again(urls, target["context"], until)
            continue
        if any(status != 200 for status, _, _ in answers):
            refusals = (json.loads(body).get("code", status) for status, _, body in answers if status != 200)
            codes["+".join(sorted(set(map(str, refusals))))] += 1
            await asyncio.sleep(0.05)
            continue
        read = [wire.read_answer(body[:size], body[size:]) for _, size, body in answers]
        assert len({(one.run, one.row) for one in read}) == 1
        for name in read[0].shares:
            sharing.decode(sharing.add([one.shares[name] for one in read]), read[0].frac_bits[name])
        seen.append((time.perf_counter() - start) * 1000)
        codes["batch", read[0].batch] += 1


async def _again(urls: Sequence[str], context: ssl.SSLContext | None, until: float) -> list[Connection]:
    while time.monotonic() < until:
        try:
            return await asyncio.gather(*(dial(url, context) for url in urls))
        except OSError:
            await asyncio.sleep(0.1)
    return []


def load(target: dict[str, Any], clients: int, seconds: float) -> dict[str, Any]:
    """So many clients for so many seconds, after one second that is not counted. Processor times are of a request."""
    rows = target["rows"]

    async def run(seconds: float) -> tuple[list[float], Counter]:
        seen: list[float] = []
        codes: Counter = Counter()
        until = time.monotonic() + seconds
        await asyncio.gather(*(client(target, rows, until, seen, codes) for _ in range(clients)))
        return seen, codes

    uvloop.run(run(1.0))
    before = target["processes"]()
    seen, codes = uvloop.run(run(seconds))
    after = target["processes"]()
    batches = {key[1]: count for key, count in codes.items() if isinstance(key, tuple)}
    cuts = statistics.quantiles(seen, n=100) if len(seen) > 1 else [float("nan")] * 99
    return {
        "clients": clients, "requests/s": len(seen) / seconds, "p50 ms": cuts[49], "p95 ms": cuts[94],
        "p99 ms": cuts[98], "rows in a batch": sum(b * n for b, n in batches.items()) / max(sum(batches.values()), 1),
        **{f"{role}, CPU ms": 1000 * (after[role] - before[role]) / max(len(seen), 1) for role in ROLES},
        "not answered": {key: count for key, count in codes.items() if not isinstance(key, tuple)},
    }  # fmt: skip


def busy_s(*pids: int) -> float:
    """Seconds that processes have kept processors busy."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


# ---- the service's processes


class Roles:
    """All roles of the example's service, each a process of its own, in one folder."""

    def __init__(self, folder: Path) -> None:
        text = (EXAMPLE / "service.toml").read_text().replace("keys = false", "keys = true")
        text = text.replace('script = "infer.py"', f'script = "{EXAMPLE}/infer.py"')
        text = text.replace('"../lenet_mnist/', f'"{EXAMPLE.parent}/lenet_mnist/')
        given = folder / "given.toml"
        given.write_text(text)
        self.folder = folder / "roles"
        self.folder.mkdir()
        made = local.write_roles(given, self.folder, 0)
        self.services, self.dealer = dict(made.services), made.dealer
        certificate, key = web_certificate(folder)
        for path in self.services.values():
            text = path.read_text().replace('url = "http:', 'url = "https:')
            text = text.replace("[me]\n", f'[me]\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n')
            path.write_text(text.replace('control = "', f'certificate = "{certificate}"\ncontrol = "'))
        self.urls = [url.replace("http:", "https:") for url in made.urls.values()]
        self.context = ssl.create_default_context(cafile=str(certificate))
        self.running: dict[str, subprocess.Popen] = {}

    def start(self, *names: str) -> None:
        """Starts these roles, or all of them."""
        for name in names or (DEALER, *self.services):
            told = (
                ["dealer", "--config", str(self.dealer)]
                if name == DEALER
                else ["serve", str(self.services[name]), "--me", name]
            )
            log = (self.folder / f"{name}.log").open("ab")
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "securemodel.cli", *told], stdout=log, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip

    def command(self, *words: str) -> str:
        """What the command line says."""
        told = [sys.executable, "-m", "securemodel.cli", *words]
        return subprocess.run(told, check=True, capture_output=True, text=True, timeout=_READY_S).stdout

    def ready(self) -> bool:
        """Whether all parties say that they are ready."""
        return all(_answers(url, "/v2/health/ready", self.context) for url in self.urls)

    def wait_until_ready(self) -> float:
        """Seconds until all parties are ready."""
        start = time.perf_counter()
        while not self.ready():
            if time.perf_counter() - start > _READY_S:
                raise RuntimeError(f"the service did not get ready; see {self.folder}")
            time.sleep(0.02)
        return time.perf_counter() - start

    def busy(self) -> dict[str, float]:
        """Seconds of processors that each kind of process has taken, that of the clients among them."""
        fronts = [psutil.Process(self.running[name].pid) for name in self.services]
        engines = [child.pid for front in fronts for child in front.children()]
        pids = ([os.getpid()], [front.pid for front in fronts], engines, [self.running[DEALER].pid])
        return {role: busy_s(*some) for role, some in zip(ROLES, pids, strict=True)}

    def stages(self, requests: int) -> dict[str, float]:
        """Median milliseconds by stage of the last so many requests, as the leader's log has them."""
        lines = (self.folder / f"{next(iter(self.services))}.log").read_bytes().splitlines()
        told = [json.loads(line)["ms"] for line in lines if b'"event":"request"' in line and b'"run":' in line]
        last = told[-requests:]
        return {name: statistics.median(one[name] for one in last) for name in last[-1]}

    def kill(self, name: str) -> None:
        """kill -9 of a role with all its processes."""
        os.killpg(self.running[name].pid, signal.SIGKILL)
        self.running.pop(name).wait()

    def stop(self) -> None:
        """Ends what runs."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def web_certificate(folder: Path) -> tuple[Path, Path]:
    """Files of a certificate for this host, signed by itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark")])
    now = datetime.now(timezone.utc)
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - timedelta(1), now + timedelta(2)
    )
    made = builder.add_extension(hosts, False).sign(key, hashes.SHA256())
    certificate, secret = folder / "web.crt", folder / "web.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.touch(0o600)
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, secret


def _answers(url: str, path: str, context: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(url + path, timeout=5, context=context) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextmanager
def service() -> Iterator[Roles]:
    """The service, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        roles = Roles(Path(folder))
        roles.start()
        try:
            yield roles
        finally:
            roles.stop()


def target_of(roles: Roles) -> dict[str, Any]:
    """What clients need: addresses, a key, the card, rows as the recipe makes them of random pixels."""
    leader, *others = roles.services
    made = roles.command("key", "new", str(roles.services[leader]), "benchmark")
    key, digest = (re.search(rf"^{word}\s+(\S+)", made, re.MULTILINE)[1] for word in ("key", "sha256"))  # type: ignore[index]
    for other in others:
        roles.command("key", "add", str(roles.services[other]), digest, "benchmark")
    with urllib.request.urlopen(roles.urls[0] + "/service.json", context=roles.context) as answer:
        told = json.load(answer)
    model = told["models"][0]
    low, high = model["card"]["clamp"]
    shape = model["card"]["inputs"][0]["shape"][1:]
    rows = np.random.default_rng(0).uniform(low, high, (256, *shape))
    return {
        "urls": roles.urls, "key": key, "card": model["card"], "model": model["name"], "rows": rows,
        "context": roles.context, "processes": roles.busy,
    }  # fmt: skip


# ---- what it is compared with


def be_engine(folder: Path, me: str, seconds: float, size: int) -> None:
    """One party of the engine alone: runs of `size` rows, one after the other; prints the median of their milliseconds,
    rows a second, and milliseconds of processors for a row."""
    script = load_file(EXAMPLE / "infer.py")
    family = script.make_family(sizes=(size,))
    config = identity.load_config(folder / f"{me}.toml")
    port = family.inputs[0]
    shares = [torch.from_numpy(np.random.default_rng(0).integers(-(2**62), 2**62, (size, *port.shape)))]
    with securemodel.connect(family, me, config) as session:
        session.load(family, script.load_model(WEIGHTS) if me == family.parties[0] else None)
        for number in range(10):
            session.run_shares(size, shares, size, number.to_bytes(32, "little"))
        count, took, busy = round(seconds * 25), [], time.process_time()
        for number in range(count):
            start = time.perf_counter()
            session.run_shares(size, shares, size, number.to_bytes(32, "big"))
            took.append(1000 * (time.perf_counter() - start))
        busy = time.process_time() - busy
        print(statistics.median(took), 1000 * count * size / sum(took), 1000 * busy / (count * size))


def engine_alone(seconds: float, size: int) -> str:
    """What runs of one size take, the dealer and both parties by processes over TLS."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        names = load_file(EXAMPLE / "infer.py").make_family(sizes=(1,)).parties
        roster, _ = loopback_parties(names, folder, dealer=True)
        text = Path(str(roster.path)).read_text()
        for name in (*names, DEALER):
            (folder / f"{name}.toml").write_text(f'{text}[me]\nidentity = "{name}"\n')
        start = lambda *words: subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True
        )
        dealer = start("-m", "securemodel.cli", "dealer", "--config", str(folder / f"{DEALER}.toml"))
        try:
            told = ["engine", str(folder), str(seconds), str(size)]
            parties = [start("-m", "benchmarks.service", *told, name) for name in names]
            ms, rate, busy = zip(
                *(map(float, party.communicate(timeout=300)[0].split()) for party in parties), strict=True
            )
            return f"p50 {max(ms):.1f} ms, {min(rate):.0f} rows/s, the parties' CPU {sum(busy):.2f} ms a row"
        finally:
            dealer.kill()


def plain_app() -> ASGIApp:
    """Plain torch: takes an int64 tensor as the service does, and answers its scores."""
    model = load_file(EXAMPLE / "infer.py").load_model(WEIGHTS)

    async def infer(request: Request) -> Response:
        body, size = await request.body(), int(request.headers[wire.LENGTH_HEADER])
        asked = wire.read_request(body[:size], body[size:], 0)
        x = torch.from_numpy(asked.shares()[0] / 2.0**16).float()
        with torch.inference_mode():
            y = (model(x) * 2.0**16).round().long().numpy()
        made = wire.answer(wire.Answer(asked.id, "lenet5", "1", "plain:1", 0, len(x), {"y": y}, {"y": 16}))
        return Response(made.body, headers={wire.LENGTH_HEADER: str(len(made.header))})

    return Starlette(routes=[Route("/v2/models/{model}/infer", infer, methods=["POST"])])


def be_plain(folder: Path, port: int) -> None:
    """The process of plain torch behind the service's HTTP server."""

    async def run() -> None:
        await server.start(plain_app(), "127.0.0.1", port, tls=(folder / "web.crt", folder / "web.key"))
        await asyncio.Event().wait()

    torch.set_num_threads(1)
    uvloop.run(run())


def plain(target: dict[str, Any], clients: int, seconds: float) -> dict[str, Any]:
    """The same clients, asking plain torch, which gets the numbers themselves from them."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        web_certificate(folder)
        port = int(free_addresses(1)[0].rpartition(":")[2])
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.service", "plain", made, str(port)])
        try:
            url, context = f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=str(folder / "web.crt"))
            start = time.perf_counter()
            while not _listens(port) and time.perf_counter() - start < _READY_S:
                time.sleep(0.05)
            busy = lambda: {**dict.fromkeys(ROLES, 0.0), "clients": busy_s(os.getpid()), "fronts": busy_s(process.pid)}
            return load({**target, "urls": [url], "context": context, "processes": busy}, clients, seconds)
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


# ---- what restarts take


def faults(roles: Roles, target: dict[str, Any]) -> dict[str, Any]:
    """Seconds until ready again after kill -9 of each role, and what a new version under load costs."""
    found = {}
    for name in (DEALER, *roles.services):
        roles.kill(name)
        start = time.perf_counter()
        time.sleep(0.5)
        roles.start(name)
        while not (roles.ready() and load(target, 1, 0.2)["requests/s"]):
            time.sleep(0.05)
            if time.perf_counter() - start > _READY_S:
                raise RuntimeError(f"not ready after the end of {name}")
        found[f"back after kill -9 of {name}"] = time.perf_counter() - start
    leader = next(iter(roles.services.values()))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(load, target, 16, 15.0)
        time.sleep(3)
        start = time.perf_counter()
        roles.command("publish", str(leader), target["model"], "--weights", str(WEIGHTS))
        found["a new version under load"] = time.perf_counter() - start
        found["of which not answered"] = asked.result()["not answered"] or "none"
    return found


@click.group(invoke_without_command=True)
@click.option("--clients", multiple=True, type=int, default=(1, 8, 32, 64), show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Of each load.")
@click.option("--restarts/--no-restarts", default=True, help="Also what restarts and a new version take.")
@click.pass_context
def main(context: click.Context, clients: tuple[int, ...], seconds: float, restarts: bool) -> None:
    """Measures a service of two parties from its clients' side, beside the engine alone and plain torch."""
    if context.invoked_subcommand:
        return
    console, rows = Console(width=200), []
    with service() as roles:
        ready = roles.wait_until_ready()
        target = target_of(roles)
        stages = []
        for count in clients:
            rows.append(("securemodel", load(target, count, seconds)))
            stages.append((count, roles.stages(round(rows[-1][1]["requests/s"] * seconds))))
        rows += [("plain torch", plain(target, count, seconds)) for count in clients]
        took = faults(roles, target) if restarts else {}
    shown = Table(title=f"LeNet-5 behind HTTPS, all processes on {machine()}")
    shown.add_column("system")
    for name in rows[0][1]:
        shown.add_column(name, justify="right")
    for system, row in rows:
        cells = (f"{value:.1f}" if isinstance(value, float) else str(value or "none") for value in row.values())
        shown.add_row(system, *cells)
    console.print(shown)
    for count, medians in stages:
        told = ", ".join(f"{name} {value:.1f}" for name, value in medians.items())
        console.print(f"the leader's median milliseconds, {count} clients: {told}")
    console.print(f"start to ready: {ready:.1f} s")
    for name, value in took.items():
        console.print(f"{name}: {value:.1f} s" if isinstance(value, float) else f"{name}: {value}")
    for size in (1, 32):
        console.print(f"the engine alone, runs of {size}: {engine_alone(seconds, size)}")


@main.command(hidden=True)
@click.argument("folder", type=Path)
@click.argument("seconds", type=float)
@click.argument("size", type=int)
@click.argument("me")
def engine(folder: Path, seconds: float, size: int, me: str) -> None:
    """A party of the engine alone."""
    be_engine(folder, me, seconds, size)


@main.command("plain", hidden=True)
@click.argument("folder", type=Path)
@click.argument("port", type=int)
def plain_process(folder: Path, port: int) -> None:
    """Plain torch."""
    be_plain(folder, port)


if __name__ == "__main__":
    main()
