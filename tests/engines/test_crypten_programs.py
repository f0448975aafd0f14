"""Programs for CrypTen before they run: none of this needs CrypTen itself."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import securemodel
from protocols.errors import ConfigError, ProtocolError
from securemodel.cli import main
from securemodel.compiler.reading import parse_program
from securemodel.engines.crypten import adapter
from securemodel.engines.crypten.program import CryptenProgram
from securemodel.engines.masked.store import prepare
from securemodel.errors import CompileError, InputError, InsecureBackendWarning, ProgramError, UnsupportedOperator
from securemodel.program import Program

quiet = pytest.mark.filterwarnings("ignore::securemodel.errors.InsecureBackendWarning")
X = torch.zeros(2, 4)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


def compiled(model: nn.Module | None = None, inputs=X, **options) -> CryptenProgram:
    settings = {"weights": "a", "inputs": "b", "outputs": "b", "protocol": "crypten", **options}
    return securemodel.compile(model or small(), inputs, **settings)


def calls(program: Program) -> list[str]:
    return [node.attrs["target"] for node in program.graph.nodes if node.op == "call"]


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 3)
        self.pool = nn.MaxPool1d(2, ceil_mode=True)

    def forward(self, x):
        y, _ = self.lstm(x)
        return self.pool(torch.special.gammaln(y))


def test_check_reports_all_that_crypten_lacks_in_the_usual_form():
    report = securemodel.check(Unsupported(), X, protocol="crypten")
    assert not report
    assert [p.operator for p in report.problems] == [
        "aten.lstm.input",
        "aten.lgamma.default",
        "aten.max_pool1d.default",
    ]
    text = str(report)
    assert "3 operators of this model have no secure version (Unsupported)" in text
    assert "CrypTen has no such operator" in text and "no ceil_mode" in text and "test_crypten_programs.py" in text
    with pytest.raises(UnsupportedOperator) as caught:
        compiled(Unsupported())
    assert str(caught.value) == text
    assert securemodel.check(small(), X, protocol="crypten")


def test_the_masked_engine_has_what_crypten_lacks_and_stays_the_default():
    assert securemodel.check(nn.LSTM(4, 3), X)
    assert securemodel.compile(small(), X, weights="a", inputs="b", outputs="b").protocol == "masked"


def test_an_unknown_protocol_is_refused_with_those_there_are():
    for call in (lambda: compiled(protocol="yao"), lambda: securemodel.check(small(), X, protocol="yao")):
        with pytest.raises(InputError, match="'yao'[^$]*'masked', 'crypten'"):
            call()


def test_compiling_warns_once_a_program_with_what_is_not_protected():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        program = compiled()
    loud = [w for w in seen if w.category is InsecureBackendWarning]
    assert len(loud) == 1 and loud[0].filename == __file__
    for part in (
        program.digest[:12],
        "first party, a, makes and so knows all",
        "not cryptographic",
        "neither encrypted",
    ):
        assert part in str(loud[0].message)


@quiet
def test_the_plan_says_who_shares_and_learns_what_and_what_is_not_counted():
    text = str(compiled().plan("wan"))
    assert "a shares 23 numbers at loading, 0 in a run" in text
    assert "b shares 0 numbers at loading, 8 in a run" in text
    assert "output 0: b learns 4 numbers" in text
    assert "aten.linear.default  2" in text
    assert "not counted: rounds, bytes, memory and time" in text
    assert "trust: the first party, a, makes and so knows all correlated randomness" in text


@quiet
def test_the_text_is_the_program(tmp_path):
    program = compiled()
    program.save(tmp_path / "program.txt")
    again = Program.load(tmp_path / "program.txt")
    assert (
        isinstance(again, CryptenProgram)
        and again.digest == program.digest
        and str(again.plan()) == str(program.plan())
    )
    assert compiled(outputs="a").digest != program.digest != compiled(frac_bits=12).digest
    with pytest.raises(ProgramError, match="not a secure-program"):
        parse_program(program.text())


@quiet
def test_an_owner_computes_alone_what_it_can():
    class Prepared(nn.Module):
        def forward(self, x):
            return torch.sin((x - 0.5) / 0.25)

    assert calls(compiled(Prepared())) == []
    norm = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    program = compiled(norm, torch.zeros(1, 1, 5, 5))
    assert calls(program) == ["aten.conv2d.default", "aten.mul.Tensor", "aten.add.Tensor"]
    shared = [node for node in program.graph.nodes if node.op == "input" and node.phase == "load"]
    assert [node.shape for node in shared] == [(2, 1, 3, 3), (2,), (2, 1, 1), (2, 1, 1)]


@quiet
def test_what_does_not_fit_is_refused():
    with pytest.raises(CompileError, match="leave out width"):
        compiled(width=32)
    with pytest.raises(ProtocolError, match=r"do not run between machines[^$]*securemodel\.local"):
        securemodel.connect(compiled(), "a", "nowhere.toml")
    with pytest.raises(InputError, match="'crypten'"):
        prepare(compiled(), 1, "nowhere")


@quiet
@pytest.mark.parametrize("package", ["crypten", "omegaconf", "onnx", "yaml"])
def test_without_crypten_all_but_running_works(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert package in adapter.missing()
    program = compiled()
    assert securemodel.check(small(), X, protocol="crypten") and program.plan()
    for action in (lambda: securemodel.local(program), adapter.load):
        with pytest.raises(ConfigError) as caught:
            action()
        assert package in str(caught.value) and "make setup-crypten" in str(caught.value)


def test_importing_this_project_does_not_import_crypten():
    code = "import sys, securemodel; sys.exit('crypten' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


MODEL = """
import torch
import securemodel
model = torch.nn.GRU(4, 3)
example_inputs = (torch.zeros(2, 4),)
small = torch.nn.Linear(4, 3).eval()
program = securemodel.compile(small, example_inputs, weights="a", inputs="b", outputs="b", protocol="crypten")
"""


@quiet
def test_the_command_line_checks_and_plans(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    call = lambda *words: CliRunner().invoke(main, [str(word) for word in words])
    assert call("check", path).exit_code == 0
    refused = call("check", path, "--protocol", "crypten")
    assert refused.exit_code == 1 and "aten.gru.input" in refused.output
    assert call("check", f"{path}:small", "--protocol", "crypten").exit_code == 0
    assert call("check", path, "--protocol", "yao").exit_code == 2
    planned = call("plan", path)
    assert planned.exit_code == 0 and "for CrypTen, parties a, b" in planned.output and "trust:" in planned.output
