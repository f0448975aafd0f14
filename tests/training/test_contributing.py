"""Owners who share their rows and leave: the same training bit for bit, and files that only fit where they belong."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from test_joint import LIMIT_S, PATIENT, job, table
from test_resident import rows_of_two
from torch import nn

from protocols import identity
from protocols.channel.testing import loopback_parties, run_together
from protocols.correlations import full_mask
from protocols.errors import ConfigError, InputError, Mismatch, PreprocessingError, SecureModelError
from protocols.fixedpoint import decode
from protocols.identity import load_config
from protocols.prg import Stream
from protocols.sealing import head_of, seal
from securemodel import training
from securemodel.compiler.positions import table_nodes
from securemodel.compiler.reading import parse_program
from securemodel.engines.masked.dealer import serve
from securemodel.engines.masked.tables import TABLE_EPOCH
from securemodel.errors import CompileError, ProgramError
from securemodel.inspect.audit import audit
from securemodel.ledger import read_ledger
from securemodel.training.contributing import contribute, path_of

own = training.owned
STAY, LEFT = ["bank", "shop"], ["registry"]


def linear(**options: Any):
    return job(**{"parties": STAY, "contributors": LEFT, "guard_every": 3, **options})


def classes(parties: list[str], contributors: list[str], shared: bool | None = None):
    """A classifier on columns of the bank and on what the owner of labels computes of them in the clear: one-hot rows."""
    torch.manual_seed(0)
    model, encoder = nn.Sequential(nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3)), nn.Linear(4, 5)
    encoder.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)

    def step(bank, registry, label):
        x = torch.cat([bank, encoder(registry).relu()], 1)
        loss = F.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    label = torch.randint(3, (20,), generator=generator)
    data = training.dataset(
        bank=own("bank", draw(20, 4)), registry=own("registry", draw(20, 4)), label=own("registry", label)
    )
    return training.compile_training(
        step, [model, encoder], optimizer, batch=data.batches(6, seed=1, resident=shared), parties=parties,
        contributors=contributors, reveal="all",
    )  # fmt: skip


def upper_rows(**options: Any):
    """The lower rows of all columns are of an owner who leaves."""
    data = rows_of_two(table())
    parts = {
        name: training.rows(a=column[0], b=replace(column[1], party="hospital"))
        for name, column in data.columns.items()
    }
    return job(training.dataset(**parts), **options)


CASES: dict[str, tuple[Callable[..., Any], list[str], list[str]]] = {
    "labels": (linear, STAY, LEFT),
    "labels, three stay": (linear, [*STAY, "notary"], LEFT),
    "columns and labels of two": (linear, ["bank", "notary"], ["shop", "registry"]),
    "computed in the clear": (classes, STAY, LEFT),
    "rows": (upper_rows, STAY, ["hospital"]),
}


def trained(run: training.Run) -> tuple[list[float], dict[str, Any], dict[str, torch.Tensor] | None]:
    losses = [returned["loss"].item() for returned in run.steps(3)]
    found = run.evaluate()
    losses += [returned["loss"].item() for returned in run.steps(2)]
    return losses, found, run.export(to="bank")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.filterwarnings("ignore:batches of")
@pytest.mark.parametrize("case", CASES)
def test_the_same_training_bit_for_bit(case):
    make, stay, left = CASES[case]
    with (
        make(parties=stay, contributors=left).local() as run,
        make(parties=[*stay, *left], contributors=[]).local() as all_,
    ):
        (losses, found, weights), (wanted, right, whole) = trained(run), trained(all_)
    assert losses == wanted and found == right and same(weights, whole)


def test_the_others_rows_may_be_shared_in_each_step():
    with classes(STAY, LEFT, shared=False).local() as run, classes([*STAY, *LEFT], [], shared=True).local() as once:
        owners = {n.owner for n in run.job.program.graph.nodes if n.op == "input" and n.phase == "run"}
        assert owners == {"bank"}
        assert same(trained(run)[2], trained(once)[2])


def test_a_training_goes_on_without_them(tmp_path):
    with linear().local() as run:
        run.train_epoch()
        run.checkpoint(tmp_path)
        run.step()
        wanted = run.export(to="bank")
    with linear().local() as run:
        assert run.resume(tmp_path) == 3
        run.step()
        assert same(run.export(to="bank"), wanted)


def test_what_a_party_gets_of_the_rows_is_masked_by_what_the_other_got():
    made = linear().job
    first, again = contribute(made, "registry"), contribute(made, "registry")
    for number, program in enumerate(made.programs().values()):
        for node in [n for n in table_nodes(program.graph) if n.owner == "registry"]:
            given = {me: first[me][number] for me in STAY}
            rows = given["bank"].rows[node.id]
            assert torch.equal(rows, given["shop"].rows[node.id]) and given["bank"].key != given["shop"].key
            masks = [full_mask([Stream(part.key)], TABLE_EPOCH, node.id, node.shape) for part in given.values()]
            wanted = program.batches.data.columns["label"][0].tensor[program.batches.data.positions[0]]
            assert (decode(rows - masks[0] - masks[1], 16) - wanted).abs().max() < 2.0**-16
            assert (decode(rows - masks[0], 16) - wanted).abs().max() > 2.0**20
            assert not torch.equal(again["bank"][number].rows[node.id], rows), "new keys each time"
    keys = [part.key for of in (first, again) for parts in of.values() for part in parts.values()]
    assert len(set(keys)) == len(keys) == 8, "no key is of two programs, or of two parties"


# ---- between processes
@dataclass
class Place:
    """A folder with identities, a parties file for each, and the files that the owner wrote."""

    folder: Path
    rows: Path

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.toml"


def place_in(folder: Path, made: Any, contributors: list[str] = LEFT) -> Place:
    roster, identities = loopback_parties(STAY, folder, dealer=True, timeouts=PATIENT, contributors=contributors)
    for name in identities:
        (folder / f"{name}.toml").write_text(f'{roster.path.read_text()}[me]\nidentity = "{name}"\n')
    where = Place(folder, folder / "rows")
    for name in contributors:
        if name in made.program.contributors:
            made.share_rows(where.rows, name, where.config(name), ledger=folder / "ledger")
    return where


def elsewhere(where: Place, task: Callable[[str, Any], Any]) -> dict[str, Any]:
    """What the parties return, in threads over TLS, with the dealer beside them."""
    config = load_config(where.config("dealer"))
    jobs = {name: linear().job for name in STAY}  # here: torch's seed and its capture belong to all threads
    tasks: dict[str, Callable[[], Any]] = {name: lambda name=name: task(name, jobs[name]) for name in STAY}
    deal = lambda: serve(config, identity.load(where.folder / "dealer"), say=lambda text: None)
    threading.Thread(target=deal, daemon=True).start()
    return run_together(tasks, LIMIT_S)


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_contributing import linear

job = linear().job
"""


def test_over_tls_after_the_owner_ended(tmp_path):
    where = place_in(tmp_path / "tls", linear().job)
    shutil.rmtree(where.rows)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent)))
    words = [
        "share",
        str(script),
        "--me",
        "registry",
        "--config",
        str(where.config("registry")),
        "--to",
        str(where.rows),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "securemodel.cli", *words, "--ledger", "none"],
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0 and "is not needed for the training" in done.stdout, done.stderr
    (where.folder / "registry" / "identity.key").unlink()  # whoever has it is gone

    def party(me: str, made: Any, folder: Path = tmp_path / "checkpoints") -> Any:
        options = {"rows": where.rows, "ledger": False}
        with made.connect(me, where.config(me), **options) as run:
            run.steps(3)
            losses = [returned["loss"].item() for returned in run.steps(3)]
            found = run.evaluate()
            run.checkpoint(folder)
        with made.connect(me, where.config(me), **options) as run:
            assert run.resume(folder) == 3
            losses += [returned["loss"].item() for returned in run.steps(2)]
            return losses, found, run.export(to="bank")

    got = elsewhere(where, party)
    assert not any(isinstance(result, BaseException) for result in got.values()), got
    with linear().local() as run:
        losses, found, weights = trained(run)
    assert got["bank"][:2] == got["shop"][:2] == (losses, found) and same(got["bank"][2], weights)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Place:
    return place_in(tmp_path_factory.mktemp("place"), linear().job, [*LEFT, "mallory"])


def refused(where: Place, rows: Path | None, made: Any = None, me: str = "bank") -> str:
    """How one party is refused before it talks to anybody."""
    with pytest.raises(InputError) as error:
        (made or linear().job).connect(me, where.config(me), rows=rows, ledger=False)
    return str(error.value)


def copy_of(where: Place, folder: Path) -> Path:
    return path_of(Path(shutil.copytree(where.rows, folder)), "registry", "bank")


def test_files_that_are_missing(shared, tmp_path):
    assert "are not given" in refused(shared, None)
    said = refused(shared, tmp_path)
    assert (
        "no rows of 'registry' for 'bank'" in said and "registry-for-bank.rows" in said and "securemodel share" in said
    )


def test_files_that_are_damaged(shared, tmp_path):
    path = copy_of(shared, tmp_path / "rows")
    whole = path.read_bytes()
    for place in (0, 63, 66, 70, 68 + len(head_of(whole)) + 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "cannot be used" in (said := refused(shared, path.parent)) and str(path) in said
    for size in (0, 10, 67, 80, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "cannot be used" in refused(shared, path.parent)
    path.write_bytes(whole + b"x")
    assert "damaged" in refused(shared, path.parent)


def test_files_of_others(shared, tmp_path):
    path = copy_of(shared, tmp_path / "rows")
    whole = path.read_bytes()
    shutil.copy(path_of(shared.rows, "registry", "shop"), path)
    assert "to 'shop', not to 'bank'" in refused(shared, path.parent)
    config, mallory = load_config(shared.config("bank")), identity.load(shared.folder / "mallory")
    forged = seal(b"x", head_of(whole), mallory, config.entry("bank"))
    path.write_bytes(forged)
    assert "not made by whoever has the certificate of 'registry'" in refused(shared, path.parent)
    path.write_bytes(forged[:64] + whole[64:])
    assert "not made by" in refused(shared, path.parent)
    path.write_bytes(seal(b"x", head_of(whole).replace(b'"registry"', b'"mallory"'), mallory, config.entry("bank")))
    assert "from 'mallory', not from 'registry'" in refused(shared, path.parent)
    path.write_bytes(whole)
    with pytest.raises(SecureModelError, match="for the identity of 'shop'|to 'bank'"):
        shutil.copy(path, path_of(path.parent, "registry", "shop"))
        linear().job.connect("shop", shared.config("shop"), rows=path.parent, ledger=False)


def test_files_for_something_else(shared, tmp_path):
    other = linear(reveal={"loss": "bank"}).job
    assert "another program" in refused(shared, shared.rows, other)
    train, _ = table().split(0.8, seed=1)
    assert "another program" in refused(shared, shared.rows, linear(batch=train.batches(16, seed=3)).job)
    train, _ = table().split(0.8, seed=2)
    assert "other rows" in refused(shared, shared.rows, linear(batch=train.batches(16, seed=2)).job)
    assert "other rows" in refused(shared, shared.rows, linear(guard_every=2).job)
    registry, config = identity.load(shared.folder / "registry"), load_config(shared.config("bank"))
    path = copy_of(shared, tmp_path / "rows")
    path.write_bytes(seal(save({"0 key": torch.zeros(32)}), head_of(path.read_bytes()), registry, config.entry("bank")))
    assert "does not have the rows" in refused(shared, path.parent)
    path.write_bytes(seal(b"no tensors", head_of(path.read_bytes()), registry, config.entry("bank")))
    assert "cannot be used" in refused(shared, path.parent)


def test_files_of_two_sharings(shared, tmp_path):
    again = tmp_path / "again"
    linear().job.share_rows(again, "registry", shared.config("registry"), ledger=False)

    def party(me: str, made: Any) -> Any:
        with made.connect(me, shared.config(me), rows=again if me == "bank" else shared.rows, ledger=False) as run:
            run.step()

    got = elsewhere(shared, party)
    assert any(isinstance(error, Mismatch) and "rows of those who left" in str(error) for error in got.values()), got


def test_whoever_shares_is_who_the_others_know(shared, tmp_path):
    made = linear().job
    for me, said in (("mallory", "no contributor of this training"), ("bank", "no contributor 'bank'")):
        with pytest.raises(ConfigError, match=said):
            made.share_rows(tmp_path, me, shared.config(me), ledger=False)
    with pytest.raises(ConfigError, match="not that of 'registry'"):
        made.share_rows(tmp_path, "registry", shared.config("mallory"), ledger=False)
    identity.create("registry", tmp_path / "new")
    text = shared.config("registry").read_text().replace('identity = "registry"', f'identity = "{tmp_path / "new"}"')
    (shared.folder / "new.toml").write_text(text)
    with pytest.raises(ConfigError, match="another certificate of 'registry' than its identity"):
        made.share_rows(tmp_path, "registry", shared.folder / "new.toml", ledger=False)
    assert not list(tmp_path.glob("*.rows"))


def test_rows_that_cannot_be_used_are_not_shared(shared, tmp_path):
    data = table()
    data.columns["label"][0].source[7] = float("inf")
    train, _ = data.split(0.8, seed=1)
    made = linear(data=data, batch=train.batches(16, seed=2)).job
    with pytest.raises(InputError, match="'label', row"):
        made.share_rows(tmp_path, "registry", shared.config("registry"), ledger=False)
    assert not list(tmp_path.iterdir())


def test_sharing_is_in_the_owners_ledger(shared):
    (line,) = read_ledger(shared.folder / "ledger").lines
    assert (line.fields["me"], line.fields["peers"], line.fields["reveals"]) == ("registry", STAY, {})
    assert line.fields["rows"] == 48 and line.fields["program"] == linear().digest


def test_what_needs_identities_or_a_dealer(shared, tmp_path):
    made = linear().job
    with pytest.raises(ConfigError, match="sealed to identities"):
        made.connect("bank", shared.config("bank"), rows=shared.rows, ledger=False, insecure_plain=True)
    with pytest.raises(PreprocessingError, match="no preprocessing"):
        made.connect("bank", shared.config("bank"), rows=shared.rows, ledger=False, store=tmp_path)
    with pytest.raises(PreprocessingError, match="no preprocessing"):
        training.stores.prepare_training(made, 3, tmp_path / "prepared")


# ---- what is compiled
REFUSED = {
    "'bank' is a party": {"contributors": ["bank", *LEFT]},
    "owns no data": {"contributors": [*LEFT, "hospital"]},
    "no list of names": {"contributors": "registry"},
    "in contributors=": {"contributors": []},
    "'registry' is to learn": {"reveal": {"loss": "registry"}},
    "unknown party registry": {"weights": "registry"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_refused_when_it_is_compiled(said):
    with pytest.raises(CompileError, match=said):
        linear(**REFUSED[said])


def test_what_mixes_rows_cannot_be_shared_before():
    model = nn.Linear(7, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(bank, shop, label):
        loss = F.mse_loss(model(torch.cat([bank, shop], 1)).squeeze(1), label - label.mean())
        loss.backward()
        optimizer.step()
        return loss

    train, _ = table().split(0.8, seed=1)
    with pytest.raises(CompileError, match="depends on which rows are in a batch") as error:
        training.compile_training(
            step, model, optimizer, batch=train.batches(16), parties=STAY, contributors=LEFT, reveal="all"
        )
    assert "test_contributing.py" in str(error.value) and "label" in str(error.value)


def test_with_paillier_alone_nobody_leaves():
    model = nn.Linear(7, 1)
    with pytest.raises(CompileError, match="contributors is not for protocol 'paillier'"):
        training.compile_training(
            lambda bank, shop, label: None, model, torch.optim.SGD(model.parameters(), lr=0.1),
            batch=table().batches(16), parties=STAY, contributors=LEFT, protocol="paillier",
        )  # fmt: skip


def test_the_text_says_it_and_no_input_is_of_who_is_no_party():
    program = linear().program
    header, graph = parse_program(program.text())
    assert header.contributors == ("registry",) and graph.text() == program.graph.text()
    with pytest.raises(ProgramError, match="is no party, and gives no input in a run"):
        parse_program(program.with_inputs.text())
    with pytest.raises(ProgramError, match="cannot be a party's name"):
        parse_program(program.text().replace("registry", "dealer"))


def test_the_plan_and_the_audit():
    made = linear()
    plan, found = made.plan(), audit(made.program)
    with made.local() as run:
        run.step()
        assert run._where.session.load_stats.sent_bytes == plan.loading_bytes
        assert run._where.session.stats.sent_bytes == plan.step.sent_bytes
        assert run._where.session.stats.preprocessing_bytes == plan.step.preprocessing_bytes
    roles = {role.name: role for role in found.roles}
    assert [*roles] == [*STAY, "registry", "dealer"] and not roles["registry"].sees and not roles["registry"].learns
    assert any("out of its owner's file" in seen.hidden_by for seen in roles["bank"].sees)


def test_simulation_has_the_same_weights():
    made = linear()
    said = made.simulate(3)
    with linear().local() as run:
        list(run.steps(3))
        found = run.export(to="bank")
    assert all((said.weights[f"model.{name}"] - value).abs().max() < 2.0**-16 for name, value in found.items())
