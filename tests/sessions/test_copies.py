"""Programs that are pickled, copied and handed to other processes; tables in prompts and notebooks."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

import securemodel
from securemodel.errors import UnsupportedOperator
from securemodel.program import Program


def by_pickle(program: Program) -> Program:
    return pickle.loads(pickle.dumps(program))


def by_torch(program: Program) -> Program:
    file = io.BytesIO()
    torch.save(program, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


class Net(torch.nn.Module):
    """Float calls of several kinds: decompositions, functions of torch, numbers of an owner."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 2)
        )

    def forward(self, x):
        torch._check_tensor_all(x < 100, lambda: "x is small")
        return self.layers(torch.nn.functional.layer_norm(x, (4,)))


def answer(program: Program, x: torch.Tensor) -> torch.Tensor:
    with securemodel.local(program) as session:
        return session.run(x)


@pytest.mark.parametrize("copied", [by_pickle, by_torch, copy.deepcopy, copy.copy], ids=lambda f: f.__name__)
@pytest.mark.parametrize("options", [{}, {"reveal": "class"}], ids=str)
def test_a_copied_program_runs_plans_and_compares_like_the_first(copied, options, tools) -> None:
    program, x = tools.make_program(Net().eval(), **options), tools.rows(5)
    other = copied(program)
    assert type(other) is type(program) and other.digest == program.digest and str(other.plan()) == str(program.plan())
    torch.testing.assert_close(answer(other, x), answer(program, x), atol=2**-10, rtol=0)
    layers = [[row.layer for row in securemodel.compare(p, x[:2]).rows] for p in (other, program)]
    assert layers[0] == layers[1]


@pytest.mark.parametrize("model", [torch.nn.Linear(4, 2), Net()], ids=["linear", "deep"])
def test_a_copied_paillier_program_runs(model, tools) -> None:
    program, x = tools.make_program(model.eval(), protocol="paillier", insecure_key_bits=512), tools.rows(2)
    torch.testing.assert_close(answer(by_pickle(program), x), model(x).detach(), atol=2**-9, rtol=0)


def test_a_program_goes_to_the_processes_of_a_pool(tools) -> None:
    program, x = tools.make_program(tools.make_model()), tools.rows(2)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = pool.submit(answer, program, x).result(100)
    torch.testing.assert_close(made, program.model(x).detach(), atol=2**-10, rtol=0)


def test_the_report_of_an_error_survives_pickling(tools) -> None:
    with pytest.raises(UnsupportedOperator) as caught:
        tools.make_program(torch.nn.Sequential(tools.make_model(), Unsupported()))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.report == caught.value.report


class Unsupported(torch.nn.Module):
    def forward(self, x):
        return torch.i0(x)


def test_notebooks_and_prompts_show_tables(program: Program, tools) -> None:
    linear = tools.make_program(torch.nn.Linear(4, 2).eval(), protocol="paillier", insecure_key_bits=512)
    shown = [program.plan(), linear.plan(), securemodel.check(program.model, torch.zeros(2, 4))]
    shown.append(securemodel.compare(program, tools.rows(2)))
    for table in shown:
        assert repr(table) == str(table) and "Plan(" not in repr(table)
        html = table._repr_html_()
        assert html.startswith("<pre>") and html.endswith("</pre>") and "\n" in html + "\n"
    assert "-&gt;" in program.plan()._repr_html_() or ">" not in str(program.plan())
