"""Encrypted graphs before they run: who computes what, what is refused, and the plan."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import securemodel
from securemodel.cli import main
from securemodel.cli.script import declares_dealer
from securemodel.engines.masked.store import prepare
from securemodel.engines.paillier.deep import DeepProgram
from securemodel.engines.paillier.program import PaillierProgram
from securemodel.errors import CompileError, ConfigError, InputError, ProgramError, UnsupportedOperator
from securemodel.planning.paillier import multiplications
from securemodel.program import Program

X = torch.zeros(4, 5)
TWO = {"weights": "bank", "inputs": "client", "outputs": "client"}


def logistic() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.Softmax(1)).eval()


def compiled(model: nn.Module | None = None, example=X, **options) -> PaillierProgram:
    settings = {**TWO, "protocol": "paillier", "insecure_key_bits": 512, **options}
    return securemodel.compile((model or logistic()).eval(), example, **settings)


def operators(program: Program, owner: str | None = None) -> list[str]:
    return [n.op for n in program.graph.nodes if n.id in program.live and (owner is None or n.owner == owner)]


class Prepared(nn.Module):
    """The client's function, then the server's layer, then the client's again."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x):
        scores = self.layer(torch.sin(x))
        return scores, torch.tanh(scores) * x[:, :2]


def test_each_party_computes_in_the_clear_what_it_can():
    program = compiled(Prepared())
    assert operators(program, "client").count("encrypt") == 1 and operators(program, "client").count("decrypt") == 1
    at = {n.op: n for n in program.graph.nodes}
    assert program.graph[at["encrypt"].args[0]].attrs["target"] == "sin.default"
    assert {n.attrs["target"] for n in program.graph.nodes if n.op == "float" and n.owner == "bank"} == {"t"}
    assert (program.shape.inputs, program.shape.outputs, program.shape.rows) == (5, 2, 4)
    assert program.client == "client" and program.server == "bank"


class Middle(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.slope = nn.Linear(5, 4), nn.Linear(4, 2), nn.PReLU()

    def forward(self, x):
        return self.slope(self.second(torch.relu(self.first(x))))


class Unknown(Middle):
    def forward(self, x):
        return self.second(torch.i0(self.first(x)))


def test_what_neither_engine_has_in_the_middle_is_refused_with_line_and_remedy():
    report = securemodel.check(Unknown(), X, protocol="paillier")
    assert [p.operator for p in report.problems] == ["aten.i0.default"]
    assert "test_paillier_programs.py" in str(report)
    with pytest.raises(UnsupportedOperator) as caught:
        compiled(Unknown())
    assert str(caught.value) == str(report)
    assert securemodel.check(Middle(), X, protocol="paillier") and securemodel.check(logistic(), X, protocol="paillier")


def test_a_function_in_the_middle_makes_a_deep_program_that_says_it_needs_a_dealer():
    program = compiled(Middle())
    assert isinstance(program, DeepProgram) and not isinstance(compiled(), DeepProgram)
    text = " ".join(str(program.plan()).split())
    for part in (
        "bank computes 2 linear layers",
        "the dealer has no part in them",
        "must not work together with client or",
    ):
        assert part in text, part
    with pytest.raises(CompileError, match="3 parties"):
        compiled(Middle(), parties=("bank", "client", "helper"))
    with pytest.raises(CompileError, match="no layer has weights of one party"):
        compiled(Pair(), (X, X), inputs=("bank", "client"))


class Pair(nn.Module):
    """A function of both parties' inputs without any weights."""

    def forward(self, ours, theirs):
        return torch.relu(ours + theirs) * ours


def test_a_refused_attempt_leaves_nothing_behind():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 2)

        def forward(self, x):
            scores = self.layer(x)
            return scores * scores * x[:, :2]

    program = compiled(Square())
    names = [n.attrs.get("kind", n.op) for n in program.graph.nodes if n.form != "float"]
    assert names == ["encrypt", "matmul", "add", "settings"]
    assert set(program.calls) == {n.id for n in program.graph.nodes if n.op == "float"}


class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x):
        return self.layer.weight * 2, self.layer(x)


@pytest.mark.parametrize(
    "options, part",
    [
        ({"outputs": "bank"}, "only the client, 'client'"),
        ({"outputs": "all"}, "only the client, 'client'"),
        ({"weights": "public", "inputs": "client", "parties": ("bank", "client")}, "everybody knows the weights"),
        ({"parties": ("bank", "client", "helper")}, "there are 3 parties"),
        ({"width": 32}, "leave out width"),
        ({"model": Alone}, "output 0 is a number of 'bank' alone"),
        ({"model": nn.Sequential(nn.Sigmoid())}, "no output is computed from numbers of both"),
        ({"model": nn.Linear(5, 2), "inputs": "bank", "parties": ("bank", "client")}, "number of 'bank' alone"),
        ({"model": nn.Linear(9000, 9000), "x": torch.zeros(1, 9000)}, "9000 inputs and 9000 outputs"),
    ],
)
def test_what_does_not_fit_the_protocol_is_refused(options, part):
    options = {**TWO, **options}
    model, x = options.pop("model", None), options.pop("x", X)
    model = model() if isinstance(model, type) else model
    with pytest.raises(CompileError, match=part):
        compiled(model, x, **options)


@pytest.mark.parametrize("option", ["weight_limit", "input_limit"])
@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), 2.0**31, True, "8"])
def test_limits_are_positive_numbers(option, bad):
    with pytest.raises(InputError, match=option):
        compiled(**{option: bad})


def test_key_sizes_are_the_secure_ones_unless_asked_loudly():
    with pytest.raises(InputError, match="use 3072, or 2048"):
        compiled(insecure_key_bits=None, key_bits=1024)
    assert compiled(insecure_key_bits=None).shape.bits == 3072
    assert compiled(insecure_key_bits=None, key_bits=2048).shape.bits == 2048
    assert 'insecure":true' in compiled().text()


def test_options_belong_to_their_protocol():
    with pytest.raises(TypeError, match="'weight_limit'; it is one of protocol='paillier'"):
        securemodel.compile(logistic(), X, weight_limit=2.0, **TWO)
    with pytest.raises(TypeError, match="unexpected argument 'frac'"):
        compiled(frac=3)


def test_everything_that_messages_depend_on_is_in_the_digest(tmp_path):
    program = compiled()
    others = [{"weight_limit": 9.0}, {"input_limit": 9.0}, {"insecure_key_bits": 640}, {"frac_bits": 12}, {}]
    digests = {compiled(None, X if change else X[:2], **change).digest for change in others} | {program.digest}
    assert len(digests) == len(others) + 1
    program.save(tmp_path / "program.txt")
    again = Program.load(tmp_path / "program.txt")
    assert isinstance(again, PaillierProgram)
    assert again.digest == program.digest and again.shape == program.shape
    assert again.plan().masked is None and "read from a file" in str(again.plan())
    with pytest.raises(InputError, match="read from a file"):
        securemodel.local(again)
    (tmp_path / "program.txt").write_text(program.text()[:300])
    with pytest.raises(ProgramError, match="damaged|not a line"):
        Program.load(tmp_path / "program.txt")
    with pytest.raises(InputError, match="'paillier'"):
        prepare(program, 1, tmp_path / "stores")


def test_many_rows_share_ciphertexts_of_the_request_and_many_outputs_those_of_the_answer():
    def layout(rows: int, outputs: int) -> tuple[int, ...]:
        shape = compiled(nn.Linear(5, outputs), torch.zeros(rows, 5), key_bits=3072, insecure_key_bits=None).shape
        return shape.groups * shape.inputs, shape.lanes, shape.reply_cells, shape.merged

    assert layout(1, 1) == (5, 1, 1, 1)
    assert layout(1, 100) == (5, 1, 2, 63)
    assert layout(40, 1) == (5, 40, 1, 1)
    assert layout(100, 1) == (10, 50, 2, 1)
    assert layout(20, 10) == (5, 20, 4, 3)


def test_rows_that_depend_on_each_other_are_one_row():
    class Centered(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 2)

        def forward(self, x):
            return self.layer(x - x.mean(0))

    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 1)

        def forward(self, x):
            return self.layer(x).squeeze()

    for model, outputs in ((Centered(), 8), (Squeezed(), 4)):
        shape = compiled(model).shape
        assert (shape.rows, shape.inputs, shape.outputs) == (1, 20, outputs)


def test_the_plan_sets_both_protocols_side_by_side_and_recommends_the_quicker():
    program = compiled(insecure_key_bits=None)
    near, far = program.plan("lan"), program.plan(securemodel.Network(1e9, 0.1))
    masked = securemodel.compile(logistic(), X, **TWO)
    assert near.masked.digest == masked.digest and near.masked.rounds == masked.plan().rounds
    assert (near.recommended, far.recommended) == ("masked", "paillier")
    assert near.masked.seconds < near.seconds and far.seconds < far.masked.seconds
    text = str(near)
    assert all(len(line) <= 110 for line in text.splitlines())
    text = " ".join(text.split())
    for part in (
        "parties bank (weights), client (key of 3072 bits)", "4 rows of 5 numbers, 3 scores for each",
        "dealt by a third party", "recommended: masked", "if a third party can deal", "no third party takes part",
        "client learns the linear scores (3 numbers for each row)", "after 6 rows of its choice",
    ):  # fmt: skip
        assert part in text, part
    assert "it needs no dealer" in str(far)


def test_a_model_that_only_paillier_runs_is_planned_without_a_comparison():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 2)

        def forward(self, x):
            return torch.special.i0e(self.layer(x))

    plan = compiled(Odd()).plan()
    assert plan.masked is None and plan.recommended == "paillier"
    assert "masked engine: 1 operator" in str(plan)


def test_more_work_is_planned_to_take_longer():
    plans = [compiled(nn.Linear(5, m), torch.zeros(n, 5)).plan() for n, m in ((1, 1), (60, 1), (60, 30))]
    assert plans[0].seconds < plans[1].seconds < plans[2].seconds
    assert multiplications(plans[0].shape) < multiplications(plans[1].shape) < multiplications(plans[2].shape)


SCRIPT = """
import torch
import securemodel
PARTIES = ("a", "b")
DEALER = False
example_inputs = (torch.zeros(2, 4),)
model = torch.nn.Linear(4, 3).eval()
deep = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3)).eval()
program = securemodel.compile(model, example_inputs, weights="a", inputs="b", outputs="b")
"""


def test_the_command_line_checks_and_plans(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(SCRIPT)
    call = lambda *words: CliRunner().invoke(main, [str(word) for word in words])
    assert call("check", path, "--protocol", "paillier").exit_code == 0
    assert call("check", f"{path}:deep", "--protocol", "paillier").exit_code == 0
    assert "for Paillier, parties a (weights), b" in call("plan", path, "--protocol", "paillier").output
    assert "for Paillier" not in call("plan", path, "--protocol", "masked").output
    assert call("plan", path, "--protocol", "masked").output == call("plan", path).output
    program = tmp_path / "program.txt"
    securemodel.compile(nn.Linear(4, 3), torch.zeros(2, 4), weights="a", inputs="b", outputs="b").save(program)
    again = call("plan", program, "--protocol", "paillier")
    assert again.exit_code == 1 and "read from a file" in again.output


def test_a_script_says_whether_it_needs_a_dealer(tmp_path):
    path = tmp_path / "script.py"
    for text, needed in (
        ("", True),
        ("DEALER = False", False),
        ("DEALER: bool = True", True),
        ("x = {'DEALER': 0}", True),
    ):
        path.write_text(text + "\n")
        assert declares_dealer(path) == needed
    for text in ("DEALER = 0", "DEALER = choose()"):
        path.write_text("import os\n" + text)
        with pytest.raises(ConfigError, match="DEALER[^$]*line 2[^$]*DEALER = False"):
            declares_dealer(path)


def test_keys_are_made_in_files_of_their_own(tmp_path):
    from protocols.paillier import load_private

    call = lambda *words: CliRunner().invoke(main, [str(word) for word in words])
    path = tmp_path / "client.key"
    made = call("keys", "paillier", path, "--bits", "2048")
    key = load_private(path.read_text())
    assert made.exit_code == 0 and key.public.fingerprint in made.output and key.public.bits == 2048
    assert path.stat().st_mode & 0o077 == 0
    again = call("keys", "paillier", path)
    assert again.exit_code != 0 and "never overwritten" in again.output
