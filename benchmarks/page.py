"""`python -m benchmarks.page [--service URL --model NAME] [--json FILE]`: what the page of a service costs.

Bytes of the page; milliseconds to make 10^6 values into shares for two parties, from floats to bytes, by numbers and by
seeds, in Node and in Chromium (the fastest of several); and, of a service that runs, milliseconds from one row to its
answer in Chromium (the median of many). The page must then be one that Chromium trusts the certificates of.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path

import click
from playwright.sync_api import Browser, sync_playwright

from benchmarks.edge import Row, show
from securemodel import page

_STATIC = Path(str(resources.files(page) / "static"))
_VALUES = 10**6
_SHARE = """
const { encode, split } = await import(URL);
const values = Float64Array.from({ length: COUNT }, (_, at) => Math.sin(at)), found = {};
for (const form of ["values", "seed"]) {
  found[form] = Infinity;
  for (let time = 0; time < 15; time++) {
    const start = performance.now();
    await split(encode(values, 16, 100), 2, { id: "00".repeat(16), form });
    found[form] = Math.min(found[form], performance.now() - start);
  }
}
"""
_ASK = """async ([name, count]) => {
  const { Client } = await import("./client.js");
  const client = new Client(await (await fetch("service.json")).json()), times = [];
  const model = client.service.models.find((found) => found.name === name);
  const row = model.card.inputs.map(({ shape }) => new Float64Array(shape.slice(1).reduce((a, b) => a * b, 1)));
  for (let time = 0; time < count; time++) {
    const start = performance.now();
    await client.infer(name, row);
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[count >> 1];
}"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def _script(url: str) -> str:
    return _SHARE.replace("URL", json.dumps(url)).replace("COUNT", str(_VALUES))


def rows(service: str | None, model: str, count: int) -> Iterator[Row]:
    yield Row("the page", sum(len(content) for _, content, _ in page.files().values()), "B")
    script = _script((_STATIC / "share.js").as_uri()) + "console.log(JSON.stringify(found));"
    command = [shutil.which("node") or "node", "--input-type=module", "-e", script]
    yield from _shared("Node", json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield from _shared("Chromium", _in_chromium(browser))
        if service:
            opened = browser.new_page()
            opened.goto(service)
            yield Row("one row to its answer, p50", opened.evaluate(_ASK, [model, count]), "ms")
        browser.close()


def _shared(where: str, found: dict[str, float]) -> Iterator[Row]:
    for form, milliseconds in found.items():
        yield Row(f"10^6 values shared in {where}, by {form}", milliseconds, "ms")


def _in_chromium(browser: Browser) -> dict[str, float]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(_STATIC))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = browser.new_page()
        opened.goto(f"http://127.0.0.1:{server.server_port}/style.css")
        found = opened.evaluate(f"async () => {{ {_script('/share.js')} return found; }}")
        server.shutdown()
    return found


@click.command()
@click.option("--service", metavar="URL", help="A service that runs; without it nothing is asked.")
@click.option("--model", default="lenet5", show_default=True, help="The model to ask.")
@click.option("--count", default=100, show_default=True, help="How often to ask.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Save the rows here.")
def main(service: str | None, model: str, count: int, json_file: Path | None) -> None:
    """Measures the page of a service: its bytes, and how fast it makes shares and gets answers."""
    show("the page of a service", rows(service, model, count), json_file)


if __name__ == "__main__":
    main()
