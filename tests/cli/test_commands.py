"""Every command but run: what it prints, and the exit code and text of each way to go wrong."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from protocols import identity
from protocols.kernels import use
from securemodel.cli import doctor as doctor_module
from securemodel.cli import main
from securemodel.cli.base import Command
from securemodel.engines.masked.store import Store
from securemodel.program import Program

COMMANDS = [
    ["run"],
    ["train"],
    ["share"],
    ["federate"],
    ["align"],
    ["describe"],
    ["evaluate"],
    ["predict"],
    ["dealer"],
    ["keys", "new"],
    ["keys", "show"],
    ["prepare"],
    ["plan"],
    ["check"],
    ["compare"],
    ["audit"],
    ["edge", "gateway"],
    ["page", "verify"],
    ["page", "offline"],
    ["serve"],
    ["publish"],
    ["drain"],
    ["status"],
    ["key", "new"],
    ["key", "add"],
    ["key", "list"],
    ["key", "revoke"],
    ["tune"],
    ["doctor"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_every_command(call, words: list[str]) -> None:
    result = call(*words, "--help")
    assert result.exit_code == 0
    assert "--traceback" in result.output
    if words != ["doctor"]:
        assert f"securemodel {' '.join(words)}" in result.output, "an example is missing"


def test_no_command_is_forgotten_here() -> None:
    names = {words[0] for words in COMMANDS}
    assert set(main.commands) == names


def test_usage_errors_end_with_2(call, program_file) -> None:
    for words in (["nonsense"], ["keys", "nonsense"], ["plan"], ["plan", "/nowhere"], ["prepare", program_file],
                  ["prepare", program_file, "--count", 0, "--out", "x"], ["check", "/nowhere.py"]):  # fmt: skip
        result = call(*words)
        assert result.exit_code == 2, (words, result.output)
        assert "Traceback" not in result.output


# ---- keys
def test_new_keys_are_shown_and_usable(call, tmp_path: Path) -> None:
    made = call("keys", "new", "bank", "--out", tmp_path / "bank")
    assert made.exit_code == 0
    own = identity.load(tmp_path / "bank")
    shown = call("keys", "show", tmp_path / "bank")
    assert shown.output == made.output
    assert own.fingerprint in shown.output and str(own.certificate_path) in shown.output
    assert stat.S_IMODE(own.key_path.stat().st_mode) == 0o600
    assert "PRIVATE" not in made.output


def test_what_keys_show_prints_makes_a_parties_file(call, tmp_path: Path) -> None:
    """The printed sections of two parties and the dealer, put together with addresses, are a valid parties file."""
    sections = []
    for port, name in enumerate(("bank", "hospital", "dealer"), 7001):
        output = call("keys", "new", name, "--out", tmp_path / "keys" / name).output
        (tmp_path / f"{name}.crt").write_bytes((tmp_path / "keys" / name / "identity.crt").read_bytes())
        found = re.search(r"^\[(?:parties\.)?\w+\]\naddress.*\ncertificate.*\nfingerprint.*\n", output, re.MULTILINE)
        sections.append(found[0].replace("HOST:PORT", f"127.0.0.1:{port}"))
        me = output[output.index("[me]") :]
    (tmp_path / "parties.toml").write_text("\n".join([*sections, me]))
    config = identity.load_config(tmp_path / "parties.toml")
    assert list(config.parties) == ["bank", "hospital"] and config.dealer is not None
    assert identity.load(config.identity).name == "dealer"


def test_keys_go_to_a_folder_of_the_name(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("keys", "new", "bank").exit_code == 0
    assert identity.load(tmp_path / "keys" / "bank").name == "bank"


def test_errors_of_keys(call, tmp_path: Path) -> None:
    call("keys", "new", "bank", "--out", tmp_path / "bank")
    before = (tmp_path / "bank" / "identity.key").read_bytes()
    for words in (["new", "bank", "--out", tmp_path / "bank"], ["new", "1bank", "--out", tmp_path / "other"],
                  ["show", tmp_path / "nowhere"]):  # fmt: skip
        result = call("keys", *words)
        assert result.exit_code == 1 and result.stderr.startswith("error: "), result.output
        assert "Traceback" not in result.output
    assert (tmp_path / "bank" / "identity.key").read_bytes() == before


def test_traceback_is_shown_on_request(call, tmp_path: Path) -> None:
    result = call("keys", "show", tmp_path / "nowhere", "--traceback")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "error: " in result.stderr


# ---- programs
def test_prepare(call, program_file, program: Program, tmp_path: Path) -> None:
    result = call("prepare", program_file, "--count", 3, "--out", tmp_path / "stores")
    assert result.exit_code == 0, result.output
    for name in program.parties:
        store = Store.open(tmp_path / "stores" / name, program, name)
        assert store.left == 3
        assert str(store.path) in result.output


def test_prepare_into_a_folder_in_use(call, program_file, tmp_path: Path) -> None:
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "mine").write_text("keep me")
    result = call("prepare", program_file, "--count", 1, "--out", tmp_path / "stores")
    assert result.exit_code == 1 and "not empty" in result.stderr
    assert [p.name for p in (tmp_path / "stores").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "..", "all"])
def test_names_of_a_text_are_no_paths(call, program: Program, tmp_path: Path, name: str) -> None:
    file, inner = tmp_path / "program.txt", tmp_path / "a" / "b"
    file.write_text(program.text().replace("hospital", name))
    inner.mkdir(parents=True)
    result = call("prepare", file, "--count", 1, "--out", inner / "stores")
    assert result.exit_code == 1 and "a name starts with a letter" in result.stderr and "Traceback" not in result.output
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "program.txt"]


def test_prepare_refuses_a_text_that_would_crash_the_kernels(call, program: Program, tmp_path: Path) -> None:
    file = tmp_path / "program.txt"
    file.write_text(program.text().replace("[2,", "[0,"))
    result = call("prepare", file, "--count", 1, "--out", tmp_path / "stores")
    assert result.exit_code == 1 and "line " in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "stores").exists()


@pytest.mark.parametrize("definition", ["program = {}", "def make_program():\n    return {}"])
def test_plan_of_a_python_file(call, write, network: str, program: Program, definition: str) -> None:
    compiled = 'securemodel.compile(model, example_inputs, weights="bank", inputs="hospital", outputs="hospital")'
    file = write("mine.py", network + definition.format(compiled))
    result = call("plan", file, "--network", "wan")
    assert result.exit_code == 0, result.output
    assert "wan" in result.output.lower() and "rounds" in result.output.lower()


def test_plan_of_a_text(call, program_file, program: Program) -> None:
    result = call("plan", program_file)
    assert result.exit_code == 0, result.output
    assert result.output == f"{Program.load(program_file).plan('lan')}\n"


def test_plan_for_an_unknown_network(call, program_file) -> None:
    result = call("plan", program_file, "--network", "moon")
    assert result.exit_code in (1, 2)
    assert "moon" in result.output and "wan" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("empty.py", "", "defines no program"),
        ("wrong.py", "program = 3", "defines no program"),
        ("broken.py", "def (", "SyntaxError"),
        ("raises.py", "x = 1\nx / 0", "raises.py, line 2"),
        ("later.py", "def make_program():\n    return [][0]", "later.py, line 2, in make_program"),
        ("exits.txt", "not a program", "not a secure-program"),
        ("cut.txt", 'secure-program 2 {"parties": [', "not a secure program|damaged"),
    ],
)
def test_files_that_hold_no_program(call, write, name: str, text: str, says: str) -> None:
    result = call("plan", write(name, text))
    assert result.exit_code == 1, result.output
    assert re.search(says, result.stderr), result.stderr
    assert "Traceback" not in result.output


def test_a_binary_file_is_no_program(call, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)))
    result = call("plan", tmp_path / "weights.bin")
    assert result.exit_code == 1 and "not even text" in result.stderr


# ---- check
def test_check_takes_models_classes_and_functions(call, write, network: str) -> None:
    more = """
class Mine(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)

def both():
    return Mine(), (torch.zeros(3),)
"""
    file = write("mine.py", network + more)
    result = call("check", file, f"{file}:model", f"{file}:Mine", f"{file}:both")
    assert result.exit_code == 0, result.output
    assert [line.split(":")[0] for line in result.output.splitlines()] == ["Sequential", "Sequential", "Mine", "Mine"]


def test_check_without_a_name_takes_make_model(call, write) -> None:
    file = write("mine.py", "import torch\ndef make_model():\n    return torch.nn.ReLU(), (torch.zeros(2),)\n")
    assert "ReLU" in call("check", file).output


def test_check_takes_a_shape(call, write) -> None:
    file = write("mine.py", "import torch\nclass Net(torch.nn.ReLU):\n    pass\n")
    assert call("check", f"{file}:Net", "--shape", "2,3").exit_code == 0
    missing = call("check", f"{file}:Net")
    assert missing.exit_code == 1 and "--shape" in missing.stderr
    wrong = call("check", f"{file}:Net", "--shape", "2x3")
    assert wrong.exit_code == 2 and "2x3" in wrong.stderr


def test_check_reports_what_is_not_supported(call, write) -> None:
    text = """
    import torch

    class Bessel(torch.nn.Linear):
        def forward(self, x):
            return torch.special.i0(super().forward(x))

    model, example_inputs = Bessel(5, 5), (torch.zeros(5),)
    """
    result = call("check", write("mine.py", text))
    assert result.exit_code == 1
    assert "aten.i0" in result.output and "mine.py:6" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("model = 3", "", "'model' is not a model"),
        ("", "", "'make_model' is not a model"),
        ("", ":Missing", "'Missing' is not a model"),
        ("def f():\n    return 1", ":f", "does not return a model"),
        ("def f():\n    return {}['x']", ":f", "KeyError"),
    ],
)
def test_files_that_hold_no_model(call, write, text: str, name: str, says: str) -> None:
    result = call("check", f"{write('mine.py', text)}{name}")
    assert result.exit_code == 1, result.output
    assert says in result.stderr and "Traceback" not in result.output


def test_streams_that_lack_characters_get_plain_ones(write) -> None:
    """cp1252 of Windows has no arrows and no check marks."""
    text = """
    import torch

    class Bessel(torch.nn.Linear):
        def forward(self, x):
            return torch.special.i0(super().forward(x))

    model, example_inputs = Bessel(5, 5), (torch.zeros(5),)
    """
    runner = CliRunner(charset="cp1252")
    result = runner.invoke(main, ["check", str(write("mine.py", text))])
    assert result.exit_code == 1 and "-> replace it" in result.output
    result = runner.invoke(main, ["doctor"])
    assert result.exit_code == 0 and "ok TLS 1.3 is available" in result.output


# ---- doctor
def test_doctor_is_content(call) -> None:
    result = call("doctor")
    assert result.exit_code == 0, result.output
    assert "✗" not in result.output and result.output.count("✓") >= 5
    assert "TLS" in result.output and "torch" in result.output


def test_doctor_tells_wrong_results(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_TOLERANCE", 0.0)
    result = call("doctor")
    assert result.exit_code == 1
    assert "✗ a network gives in shares what it gives in torch: the result is off by" in result.output
    assert "✗ a training step gives in shares what it gives in torch: the weights are off by" in result.output


def test_doctor_notes_missing_kernels(call) -> None:
    with use("twins"):
        result = call("doctor")
    assert result.exit_code == 0, result.output
    assert "! compiled kernels are in use" in result.output


# ---- dealer
def test_dealer_needs_a_parties_file_and_an_identity(call, tmp_path: Path) -> None:
    assert call("dealer").exit_code == 2
    assert call("dealer", "--config", tmp_path / "nowhere.toml").exit_code == 2
    (tmp_path / "parties.toml").write_text("[parties]\n")
    wrong = call("dealer", "--config", tmp_path / "parties.toml")
    assert wrong.exit_code == 1 and "at least two parties" in wrong.stderr


def test_dealer_ends_with_3_if_nobody_comes(call, parties_file) -> None:
    result = call("dealer", "--once", "--config", parties_file("dealer", connect_s=0.2))
    assert result.exit_code == 3, result.output
    assert "nobody came" in result.stderr and "Traceback" not in result.output


def test_dealer_without_its_identity(call, parties_file) -> None:
    nobody = call("dealer", "--config", parties_file(None))
    assert nobody.exit_code == 1 and "securemodel keys new dealer" in nobody.stderr
    other = call("dealer", "--config", parties_file("bank"))
    assert other.exit_code == 1 and "'bank', not 'dealer'" in other.stderr


def test_an_error_of_a_file_that_nobody_explained_is_named(call, write) -> None:
    @click.command(cls=Command)
    def failing() -> None:
        open("/nowhere/file")

    result = CliRunner().invoke(failing, [])
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "where: /nowhere/file" in result.stderr and "No such file" in result.stderr and "→" in result.stderr
