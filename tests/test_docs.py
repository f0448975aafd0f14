"""The documentation: its code runs, its links lead somewhere, and it names everything that is public."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import torch

import securemodel
from protocols.channel import HEADER_BYTES
from protocols.gates import GATES, dealt_bytes
from protocols.gates.sign import digit_count, groups, opened_planes
from protocols.identity import plain_config
from securemodel.cli import main as command_line
from securemodel.cli.launch import run_local
from securemodel.cli.script import declared_parties
from securemodel.compiler.lower import DECOMPOSITIONS, LOWERINGS
from securemodel.compiler.ops import ROWS
from securemodel.data import Schema
from securemodel.data.described import read_description

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "protocols/README.md", ROOT / "securemodel/README.md"])
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name_of(page: Path) -> str:
    """A page's path inside the repository."""
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """One fenced block of a page and the line it begins on."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def is_script(self) -> bool:
        """Whether it is meant for all parties, as processes, and not for this process."""
        return self.language == "python" and re.search(r"^PARTIES = ", self.code, re.MULTILINE) is not None

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in one of these languages."""
    text = page.read_text()
    found = [Block(page, text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in _BLOCK.finditer(text)]
    return [block for block in found if block.language in languages]


def anchors(text: str) -> set[str]:
    """The names by which headings are linked to, as mkdocs makes them."""
    without_code = _BLOCK.sub("", text)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in _HEADING.findall(without_code))
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


@pytest.fixture
def tables() -> Iterator[None]:
    """Leaves the tables of operators and gates as they were, whatever a page adds to them."""
    before = [(table, dict(table)) for table in (LOWERINGS, DECOMPOSITIONS, GATES)]
    yield
    for table, content in before:
        table.clear()
        table.update(content)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_a_page_runs(page, tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in blocks(page, "python"):
        if block.is_script:
            continue
        padded = "\n" * (block.line - 1) + block.code  # so that a traceback shows the line of the page
        exec(compile(padded, str(page), "exec", dont_inherit=True), namespace)


SCRIPTS = [block for page in PAGES for block in blocks(page, "python") if block.is_script]


@pytest.mark.slow
@pytest.mark.parametrize("block", SCRIPTS, ids=str)
def test_a_script_of_a_page_runs_at_all_parties(block, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script, said = tmp_path / "script.py", []
    script.write_text(block.code)
    outcome = run_local(script, [], declared_parties(script), lambda who, text, error: said.append(f"{who} | {text}"))
    assert outcome.code == 0, "\n".join(said)


def test_there_are_blocks_of_both_kinds():
    assert SCRIPTS
    assert sum(len(blocks(page, "python", "toml", "sh")) for page in PAGES) > 20


def _commands(block: Block) -> Iterator[list[str]]:
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "securemodel" in words[:4]:  # also behind sudo -u NAME
            yield words[words.index("securemodel") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_a_page_exist(page):
    for block in blocks(page, "sh"):
        for words in _commands(block):
            command, words = command_line, list(words)
            while isinstance(command, click.Group) and words:
                name = words.pop(0)
                if name.startswith("-"):
                    break
                assert name in command.commands, f"{block}: there is no command {name!r}"
                command = command.commands[name]
            options = {
                text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)
            } | {"--help", "-h", "--version"}
            for word in words[: words.index("--")] if "--" in words else words:
                assert not word.startswith("-") or word in options, f"{block}: {command.name} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_toml_files_of_a_page_can_be_read(page, tmp_path):
    for block in blocks(page, "toml"):
        tables = tomllib.loads(block.code)
        if "columns" in tables:
            Schema.parse(block.code)
            continue
        if "file" in tables:
            (tmp_path / "described.toml").write_text(block.code)
            assert read_description(tmp_path / "described.toml")[0] == tmp_path / tables["file"]
            continue
        assert set(tables) <= {"parties", "dealer", "me", "timeouts"}, block
        addresses = {name: entry["address"] for name, entry in tables.get("parties", {}).items()}
        plain_config(addresses)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_somewhere(page):
    text = page.read_text()
    for link in _LINK.findall(_BLOCK.sub("", text)):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{name_of(page)} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(there.read_text()), f"{name_of(page)}: {link} has no such heading"


def test_places_the_code_refers_to_exist():
    """Docstrings that say `docs/page.md, "Heading"` or `docs/page.md, section 1`."""
    pattern = re.compile(r'(docs/[\w/-]+\.md)(?:,\s+(?:"([^"]+)"|section (\d+)))?')
    for folder in ("protocols", "securemodel"):
        for source in (ROOT / folder).rglob("*.py"):
            for page, heading, section in pattern.findall(source.read_text()):
                where = f"{name_of(source)} refers to {page}"
                assert (ROOT / page).is_file(), where
                text = (ROOT / page).read_text()
                assert not heading or re.search(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE), (where, heading)
                assert not section or re.search(rf"^## {section}\. ", text, re.MULTILINE), (where, section)


def _section(text: str, heading: str) -> str:
    match = re.search(rf"^(#+) `?{re.escape(heading)}`?$(.*?)(?=^#{{1,3}} |\Z)", text, re.MULTILINE | re.DOTALL)
    return match[2] if match else ""


@pytest.mark.parametrize("name", securemodel.__all__)
def test_every_public_name_is_documented(name):
    assert _section((DOCS / "api.md").read_text(), name).strip(), f"docs/api.md has no section {name}"


def _all_commands(group: click.Group, prefix: str = "securemodel") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _all_commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


@pytest.mark.parametrize("name, command", list(_all_commands(command_line)), ids=str)
def test_every_command_and_option_is_documented(name, command):
    section = _section((DOCS / "api.md").read_text(), name)
    assert section.strip(), f"docs/api.md has no section {name}"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.opts[0] != "--traceback":
            assert f"`{parameter.opts[0]}" in section, f"docs/api.md, {name}: {parameter.opts[0]} is missing"


def test_every_operator_of_a_program_is_explained():
    section = _section((DOCS / "architecture.md").read_text(), "The secure graph")
    missing = [name for name in ROWS if f"`{name}`" not in section]
    assert not missing, f"docs/architecture.md does not say what these compute: {', '.join(missing)}"


def _sign_cost(low_bits: int) -> tuple[int, int, float]:
    """(openings of bits, bits sent, dealt bytes) of one comparison, per element."""
    elements = 64
    digits, opened = digit_count(low_bits), []
    window = {"shift": 0, "low_bits": low_bits, "bit": low_bits}
    dealt = sum(dealt_bytes(GATES[gate], window, [(elements,)], ()) for gate in ("digits", "top_bit"))
    while digits > 1:
        opened.append(len(opened_planes(digits)))
        dealt += dealt_bytes(GATES["combine"], {"digits": digits}, [(opened[-1], elements // 64)], ())
        digits = len(groups(digits))
    opened.append(1)
    return len(opened), sum(opened), dealt / elements


@pytest.mark.parametrize("bits", [64, 48, 32, 16])
def test_costs_of_a_sign_are_as_the_protocol_page_says(bits):
    row = re.search(rf"^\| {bits} \|(.*)\|$", (DOCS / "protocol.md").read_text(), re.MULTILINE)
    cells = [cell.strip() for cell in row[1].split("|")]
    openings, sent, dealt = _sign_cost(bits - 1)
    assert (int(cells[2]), int(cells[3].split("=")[-1])) == (openings, sent)
    assert float(cells[4]) == pytest.approx(dealt, abs=0.05)


@pytest.mark.parametrize(
    "row, gate, attrs",
    [
        ("product, per element of the result", "bilinear", {}),
        ("square", "square", {}),
        ("truncation, fast", "truncate", {"bits": 16}),
        ("truncated value in masked form, fast, all bytes of it", "shift", {"bits": 16}),
        ("product with a truncated value, fast", "multiply_truncated", {"bits": 16}),
        ("selection", "select", {}),
        ("selection with truncation, fast", "select_truncated", {"bits": 16}),
        ("bit to ring", "bit_to_ring", {}),
        ("rows at such positions, per element of what they are rows of", "permute", {}),
    ],
)
def test_costs_of_gates_are_as_the_protocol_page_says(row, gate, attrs):
    found = re.search(rf"^\| {row} \|.*\| ([\d.]+) \|$", (DOCS / "protocol.md").read_text(), re.MULTILINE)
    assert float(found[1]) == dealt_bytes(GATES[gate], attrs, [(1,)] * (1 + (gate == "permute")), (1,))


class Scaled(torch.nn.Module):
    """A function of a product, which has twice the fractional bits: of k / 2^24 for the input k / 2^16."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([2.0**-8]))
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x * self.factor)


def _repeated(function: Callable[[torch.Tensor], torch.Tensor], k: torch.Tensor, rounding: str) -> torch.Tensor:
    """What several secure runs give, one after the other along the first axis."""
    x, count = k / 2.0**16, 8
    program = securemodel.compile(Scaled(function), x, weights="a", inputs="b", outputs="b", rounding=rounding)
    with securemodel.local(program) as session:
        return torch.stack([session.run(x) for _ in range(count)])


def test_errors_of_comparisons_are_as_the_protocol_page_says():
    k = torch.arange(-600, 600)
    value, unit = k.double() * 2.0**-24, 2.0**-16
    near = (value != 0) & (value.abs() < unit)
    above, below = value > 0, value < 0
    for function, may_be_wrong in ((torch.gt, above), (torch.lt, below), (torch.ge, below), (torch.le, above)):
        assert (_repeated(lambda x, f=function: f(x, 0.0), k, "exact") == function(value, 0.0)).all(), function
        right = _repeated(lambda x, f=function: f(x, 0.0), k, "fast") == function(value, 0.0)
        assert right[:, ~(near & may_be_wrong)].all(), function
        assert not right[:, near & may_be_wrong].all(), f"{function} is better than the page says"


def test_relu_after_a_product_is_that_of_floor_or_floor_plus_one():
    k = torch.arange(-600, 600)
    value = k.double() / 2.0**8
    nearest = (value + 0.5).floor().clamp(min=0)
    assert (_repeated(torch.relu, k, "exact").double() * 2.0**16 == nearest).all()
    units = _repeated(torch.relu, k, "fast").double() * 2.0**16
    low, high = value.floor().clamp(min=0), (value.floor() + 1).clamp(min=0)
    assert ((units == low) | (units == high)).all()
    assert (units == low).any() and ((units == high) & (high != low)).any()
    exact = value == value.floor()
    assert (units == low)[:, exact].all()


def test_the_size_of_a_header_is_as_the_pages_say():
    for page in ("protocol.md", "api.md"):
        sizes = re.findall(r"headers?\s+of\s+(\d+)\s+bytes", (DOCS / page).read_text(), re.IGNORECASE)
        assert sizes and {int(size) for size in sizes} == {HEADER_BYTES}, page


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT], ids=name_of)
def test_lines_are_not_too_long(page):
    lines = page.read_text().splitlines()
    long = [i for i, line in enumerate(lines, 1) if len(line) > 120 and not line.startswith("|")]
    assert not long, f"{name_of(page)}: lines {long} have more than 120 columns"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_number_is_still_to_be_filled_in(page):
    assert not re.search("@[A-Z]+@", page.read_text())


@pytest.mark.parametrize("folder", ["protocols", "securemodel"])
def test_readmes_list_every_module(folder):
    text = (ROOT / folder / "README.md").read_text()
    modules = [p for p in (ROOT / folder).rglob("*.py") if not p.name.startswith("__")]
    missing = [str(p.relative_to(ROOT / folder)) for p in modules if f"`{p.relative_to(ROOT / folder)}`" not in text]
    assert not missing, f"{folder}/README.md does not list {', '.join(missing)}"
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", text, re.MULTILINE)
    assert all((ROOT / folder / name).is_file() for name in listed)


def test_the_folders_of_the_architecture_are_those_of_the_tree():
    table = re.search(r"^\| folder \|.*?\n\n", (DOCS / "architecture.md").read_text(), re.MULTILINE | re.DOTALL)[0]
    listed = set(re.findall(r"`((?:securemodel|protocols)[\w/.]*)`", table))
    packages = {p.parent for name in ("protocols", "securemodel") for p in (ROOT / name).glob("*/__init__.py")}
    folders = {str(p.relative_to(ROOT)) for p in packages}
    assert not folders - listed, f"docs/architecture.md does not list {', '.join(sorted(folders - listed))}"
    assert all((ROOT / name).exists() for name in listed)


def test_a_block_that_fails_is_noticed(tables, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        test_the_code_of_a_page_runs(page, tables, tmp_path, monkeypatch)


def test_pages_are_python_that_can_be_parsed():
    for page in PAGES:
        for block in blocks(page, "python"):
            ast.parse(block.code)


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e .[docs]")
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "mkdocs.yml")]
    command += ["--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
