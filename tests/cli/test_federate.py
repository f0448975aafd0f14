"""securemodel federate: everybody on one machine, and as one aggregator that sites reach."""

import json
import os
import re
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from protocols.channel.testing import loopback_parties, run_together
from protocols.errors import InputError
from securemodel.cli import federate as command
from securemodel.edge.federation import Federation
from securemodel.edge.rounds import digest_of
from securemodel.federated.scripts import read

SCRIPT = '''
    """Three sites fit a line, each to points of its own."""
    import numpy as np

    from securemodel import federated
    from securemodel.edge.rounds import Layout

    ROUNDS, SITES = 3, ("north", "south", "west")
    task = federated.Task(
        "line", federated.weighted_mean(), Layout.of({"w": np.zeros(2)}), slots=3, limit=8.0, max_weight=100,
        aggregators=("first", "second"), deadline_s=600.0, reveal="REVEAL",
    )
    truth = np.array([1.5, -0.5])


    def start():
        return {"w": np.zeros(2)}


    def points(seed, rows):
        x = np.random.default_rng(seed).normal(size=(rows, 2))
        return x, x @ truth


    def train(site, model, number):
        x, y = points(SITES.index(site), 20)
        w = model["w"].copy()
        for _ in range(15):
            w -= 0.1 * x.T @ (x @ w - y) / len(x)
        return {"w": w - model["w"]}, len(x)


    def evaluate(model):
        x, y = points(7, 50)
        return 1 - np.square(x @ model["w"] - y).sum() / np.square(y).sum()
'''


@pytest.fixture
def script(write):
    return lambda reveal="aggregators", text=SCRIPT: write("line.py", textwrap.dedent(text).replace("REVEAL", reveal))


@pytest.mark.parametrize("reveal", ["aggregators", "clients"])
def test_everybody_on_this_machine(call, script, tmp_path, reveal):
    result = call("federate", script(reveal), "--local", "--picture", tmp_path / "out.svg")
    assert result.exit_code == 0, result.output
    found = [float(x) for x in re.findall(r"round \d of 3, accuracy (\d\.\d+)", result.output)]
    assert len(found) == 3 and found == sorted(found) and found[-1] > 0.9
    assert "Picture" in result.output
    drawn = ET.parse(tmp_path / "out.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg" and f"{found[-1]:.3f} in round 3" in "".join(drawn.itertext())


def test_a_run_that_is_ended_leaves_nothing_in_the_temporary_folder(script, tmp_path):
    """Sites see a folder of uploads; then SIGTERM comes, as of a scheduler."""
    end = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    seen = "import tempfile; print(os.listdir(tempfile.gettempdir()), flush=True)"
    path = script(text=SCRIPT.replace("x, y = points(SITES", f"import os; {seen}; {end}\n        x, y = points(SITES"))
    folder = tmp_path / "temporary"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "securemodel.cli", "federate", str(path), "--local"],
        env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "securemodel-federated-" in done.stdout and done.returncode not in (0, -15), done.stderr
    assert not list(folder.iterdir())


def test_what_noise_promises_is_printed(call, script):
    noise = "protection=federated.Protection(50.0, 4.0), budget=federated.Budget(rounds=3, epsilon=1.0), bits=64,"
    text = (
        SCRIPT.replace("deadline_s", f"{noise} deadline_s")
        + "\n    def apply(model, aggregate):\n        return model\n"
    )
    result = call("federate", script(text=text), "--local")
    assert result.exit_code == 0, result.output
    told = r"after 3 rounds: epsilon 0\.1\d+ at delta 1e-05, of one aggregator's noise; neighbors: one client's update"
    assert re.search(told, result.output), result.output
    assert "at most rounds 3, epsilon 1." in result.output and "No amplification" in result.output
    spent = call("federate", script(text=text.replace("rounds=3", "rounds=2")), "--local")
    assert spent.exit_code == 1 and "takes no more part" in spent.output


def test_the_example(call):
    example = Path(__file__).parents[2] / "examples" / "federated_plain" / "rounds.py"
    result = call("federate", example, "--local")
    assert result.exit_code == 0, result.output
    found = [float(x) for x in re.findall(r"accuracy (\d\.\d+)", result.output)]
    assert len(found) == 10 and 0.6 < found[0] < found[-1]


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("task = ", "plan = ", "describes no task"),
        ("ROUNDS, SITES = 3", "ROUNDS, SITES = 0", "how many rounds"),
        ('("north", "south", "west")', '("north", "north")', "different names"),
        ('("north", "south", "west")', "()", "no sites"),
        ("def start", "def begin", "no function start()"),
        ("def train", "def teach", "no function train()"),
        ("}, len(x)", "}", "no update and weight"),
        ("}, len(x)", "}, 101", "no weight of the round"),
        ("deadline_s=600.0", "minimum=4", "cannot be carried out"),
        ("w = model", "w = modell", "NameError"),
        ("def evaluate", "def judge", "no accuracy to draw"),
        ("return 1 - np", "1 - np", "evaluate() gives a NoneType, and no number"),
        ('return {"w": np.zeros(2)}', "return [0.0]", "start() gives a list, and no model"),
    ],
)
def test_what_a_script_lacks_is_named(call, script, tmp_path, old, new, told):
    path = script(text=SCRIPT.replace(old, new))
    result = call("federate", path, "--local", "--picture", tmp_path / "out.svg")
    assert (result.exit_code == 0) == (told == "") and told in result.output, result.output
    assert "round 1" not in result.output


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--local", "--me", "first"],
        ["--me", "first"],
        ["--me", "first", "--config", "{config}", "--data", "d", "--certificate", "{config}"],
        ["--new-key", "north"],
        ["--data", "d", "--all-sites"],
    ],
)
def test_words_that_do_not_go_together(call, script, write, words):
    config = write("parties.toml", "")
    result = call("federate", script(), *(word.format(config=config) for word in words))
    assert result.exit_code == 2, result.output


def test_keys_of_sites(call, script, tmp_path):
    made = call("federate", script(), "--data", tmp_path / "first", "--new-key", "north").output
    option = re.search(r"--add-key (north=[0-9a-f]{64})", made)
    assert option
    taken = call("federate", script(), "--data", tmp_path / "second", "--add-key", option[1])
    assert taken.exit_code == 0
    books = [json.loads((tmp_path / name / "keys.json").read_text()) for name in ("first", "second")]
    assert books[0][0]["sha256"] == books[1][0]["sha256"] and books[0][0]["models"] == ["north"]
    assert made.split("key of north: ")[1][:43] not in str(books)
    assert call("federate", script(), "--data", tmp_path / "first", "--add-key", "north=12").exit_code == 1
    made = call("federate", script(), "--data", tmp_path / "first", "--new-key", "server", "--all-sites").output
    option = re.search(r"--add-key (server=[0-9a-f]{64}) --all-sites", made)
    assert option
    call("federate", script(), "--data", tmp_path / "second", "--add-key", option[1], "--all-sites")
    for name in ("first", "second"):
        assert json.loads((tmp_path / name / "keys.json").read_text())[1]["models"] == []


def test_what_an_aggregator_needs_is_named(call, script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "msgspec", None)
    monkeypatch.delitem(sys.modules, "securemodel.service.keys", raising=False)
    result = call("federate", script(), "--data", tmp_path / "first", "--new-key", "north")
    assert result.exit_code == 1 and "securemodel[serve]" in result.output


def test_models_have_digests():
    model = {"w": np.zeros(2), "b": np.zeros(())}
    others = [{**model, "w": np.ones(2)}, {**model, "b": np.zeros(1)}, {"w": np.zeros(2), "c": np.zeros(())},
              {**model, "w": np.zeros(2, np.float32)}]  # fmt: skip
    assert len({digest_of(each) for each in (model, *others)}) == 5
    assert digest_of(dict(reversed(list(model.items())))) == digest_of(model)


def test_as_aggregators_that_sites_reach(script, tmp_path, capsys):
    """Two aggregators as the command runs them, over TLS links, and sites that know federation.json alone."""
    told = read(script(text=SCRIPT.replace("weighted_mean()", "mean()").replace("max_weight=100", "max_weight=1")))
    roster, _ = loopback_parties(("first", "second"), tmp_path)

    def aggregator(name):
        config = tmp_path / f"{name}.toml"
        config.write_text(f'{roster.path.read_text()}[me]\nidentity = "{name}"\n')
        picture = tmp_path / f"{name}.svg"
        command._aggregate(
            told, name, config, tmp_path / f"data-{name}", "127.0.0.1:0", None, None, 60.0, 1.0, "none", picture
        )

    def file():
        entries = [tmp_path / f"data-{name}" / "aggregator.json" for name in ("first", "second")]
        while not all(entry.exists() for entry in entries):
            time.sleep(0.05)
        return {"securemodel_federation": 1, "aggregators": [json.loads(entry.read_text()) for entry in entries]}

    def site(name):
        model, models = told.start(), []
        with Federation(file(), client=name) as mine:
            for number in range(1, 4):
                card = mine.card(after=number - 1)
                assert card.model == digest_of(model)
                update, _ = told.train(name, model, number)
                model = told.apply(model, mine.result(mine.share(card, update)))
                models.append(digest_of(model))
        return models

    tasks = {name: lambda name=name: aggregator(name) for name in ("first", "second")}
    sites = {name: lambda name=name: site(name) for name in told.sites}
    ended = run_together({**tasks, **sites}, timeout_s=180)
    assert not [end for end in ended.values() if isinstance(end, BaseException)], ended
    assert len({tuple(ended[name]) for name in told.sites}) == 1
    output = capsys.readouterr().out
    assert output.count("round 3 of 3: 3 in, 0 absent; to aggregators: the aggregate, accuracy 0.9") == 2
    assert (tmp_path / "first.svg").exists()


def test_a_script_is_read_once_whole(tmp_path):
    with pytest.raises(InputError, match="not a Python file"):
        read(tmp_path / "line.txt")
