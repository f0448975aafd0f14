"""SERVICE.toml is read strictly: what is right is all there, what is wrong is named with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protocols.channel.testing import loopback_parties
from protocols.errors import ConfigError
from securemodel.service import config as configs
from securemodel.service.local import write_roles
from securemodel.service.naming import Lane, lane_count, lane_number

TEXT = """\
[service]
name = "digits"
leader = "hospital"
parties = "parties.toml"

[fronts.bank]
url = "https://bank.example:8443"
control = "bank.example:7101"

[fronts.hospital]
url = "https://hospital.example"
control = "[2001:db8::1]:7101"

[me]
data = "data"
weights = { one = "w.safetensors" }

[[model]]
name = "one"
script = "infer.py"
clamp = [0, 1.5]
reveal = "top1"

[[model]]
name = "two"
script = "infer.py"
sizes = [1, 8]
lanes = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    loopback_parties(("bank", "hospital"), tmp_path, dealer=True)
    (tmp_path / "infer.py").write_text("")
    return tmp_path


def load(folder: Path, text: str) -> configs.ServiceConfig:
    (folder / "service.toml").write_text(text)
    return configs.load(folder / "service.toml")


def test_everything_is_read(folder: Path) -> None:
    config = load(folder, TEXT)
    assert config.ranks == ("hospital", "bank") and config.service.keys
    assert config.data == folder / "data" and config.own.weights == {"one": str(folder / "w.safetensors")}
    one, two = config.models
    assert one.options == {"clamp": (0.0, 1.5), "reveal": "class"} and two.options == {"sizes": (1, 8)}
    assert Path(one.script) == folder / "infer.py" and config.limits.queue_rows == 2048
    assert config.model("two") is two
    with pytest.raises(ConfigError, match="it lists one, two"):
        config.model("three")


def test_top_k_is_a_pair(folder: Path) -> None:
    assert load(folder, TEXT.replace("top1", "top12")).models[0].options["reveal"] == ("top", 12)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ('leader = "hospital"', 'leader = "client"', 3, "'client' is not a party"),
        ('name = "digits"', "", 1, "`name`"),
        ('name = "digits"', 'name = "digits"\nnmae = 1', 3, "unknown field `nmae`"),
        ('control = "bank.example:7101"', 'control = "bank.example"', 8, "regex"),
        ('url = "https://bank.example:8443"', 'url = "http://bank.example"', 7, "http://bank.example"),
        ('url = "https://hospital.example"', 'url = "https://hospital.example/x"', 11, "no address"),
        ('url = "https://hospital.example"', 'url = "https://[::1"', 11, "Invalid IPv6"),
        ('url = "https://hospital.example"', 'url = "https://hospital.example:65536"', 11, "(?i)port"),
        ('url = "https://hospital.example"', 'url = "https://hospital .example"', 11, "a space"),
        ('url = "https://hospital.example"', 'url = "https://bank.example:8443/"', 7, "two fronts"),
        ('control = "[2001:db8::1]:7101"', 'control = "bank.example:7101"', 8, "two fronts"),
        ('control = "[2001:db8::1]:7101"', 'control = "[2001:db8::1]:71010"', 12, "no port"),
        ('control = "[2001:db8::1]:7101"', 'control = "[::1]:7101"\nca = "gone.pem"', 13, "no file gone.pem"),
        ('url = "https://hospital.example"', "url = 3", 11, "Expected `str`|expected `str`"),
        ("[fronts.bank]", "[fronts.shop]", 6, "'shop' is not a party|reach 'bank'"),
        ('name = "two"', 'name = "one"', 25, "two models are called 'one'"),
        ("sizes = [1, 8]", "sizes = [8, 1]", 27, "rising"),
        ("sizes = [1, 8]", "sizes = [0, 1]", 27, ">= 1"),
        ("lanes = 3", "lanes = 65", 28, "<= 64"),
        ("clamp = [0, 1.5]", "clamp = [2, 1.5]", 21, "lowest"),
        ('reveal = "top1"', 'reveal = "top"', 22, "means nothing"),
        ('reveal = "top1"', 'script = "infer.py"', 0, "not valid TOML"),
        ('[[model]]\nname = "two"\nscript = "infer.py"', '[[model]]\nname = "two"\nscript = "gone.py"', 26, "gone.py"),
        ('data = "data"', 'data = ""', 15, "length >= 1"),
        ('data = "data"', 'data = "data"\nlisten = "0.0.0.0:84430"', 16, "no port"),
        ('data = "data"', 'data = "data"\nmetrics = "0.0.0.0:9464"', 16, "not 127.0.0.1"),
        ('data = "data"', 'data = "data"\ntls_certificate = "a.pem"\ntls_key = "a.pem"', 16, "no file a.pem"),
        ('data = "data"', 'data = "data"\nrest_key_command = []', 16, "length >= 1"),
        ('data = "data"', 'data = "data"\ntls_key = "web.key"', 14, "goes with its key"),
        ('data = "data"', 'data = "data"\nrest_key = "k"\nrest_key_command = ["x"]', 16, "keep one"),
        ("{ one =", "{ three =", 16, "'three'"),
    ],
)
def test_mistakes_are_named_with_their_line(folder: Path, old: str, new: str, line: int, says: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError) as caught:
        load(folder, TEXT.replace(old, new, 1))
    found = str(caught.value)
    assert re.search(says, found), found
    assert "service.toml" in found and (f"line {line}" in found or not line), found
    assert "→" in found or not line


def test_a_party_cannot_be_called_client(tmp_path: Path) -> None:
    loopback_parties(("client", "hospital"), tmp_path)
    (tmp_path / "infer.py").write_text("")
    with pytest.raises(ConfigError, match="cannot be called 'client'"):
        load(tmp_path, TEXT.replace("bank", "client"))


def test_equal_services_have_equal_digests_wherever_they_are(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    digest = load(folder, TEXT).digest()
    assert load(folder, re.sub(r"\[me\]\n.*\n.*\n", '[me]\ndata = "elsewhere"\n', TEXT)).digest() == digest
    for old, new in (('leader = "hospital"', 'leader = "bank"'), ("lanes = 3", "lanes = 2"), ("8443", "8444"),
                     ("[0, 1.5]", "[0, 1.25]"), ('name = "two"', 'name = "twelve"')):  # fmt: skip
        assert load(folder, TEXT.replace(old, new)).digest() != digest, new
    other = tmp_path_factory.mktemp("other")
    loopback_parties(("bank", "hospital"), other, dealer=True)
    (other / "infer.py").write_text("")
    assert load(other, TEXT).digest() != digest, "other certificates are another service"


def test_lanes_never_share_a_number(folder: Path) -> None:
    config = load(folder, TEXT)
    every = [Lane(m.name, v, n) for m in config.models for v in (4, 5) for n in range(m.lanes)]
    numbers = [lane_number(config, lane) for lane in every]
    assert sorted(numbers) == list(range(lane_count(config))) == list(range(8))
    assert lane_number(config, Lane("two", 6, 1)) == lane_number(config, Lane("two", 4, 1))


def test_files_of_all_roles_on_one_machine_are_read_as_written(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder / "service.toml").write_text(TEXT)
    roles = write_roles(folder / "service.toml", tmp_path_factory.mktemp("roles"), 0)
    assert list(roles.services) == ["hospital", "bank"]
    found = [configs.load(path) for path in roles.services.values()]
    assert found[0].digest() == found[1].digest()
    assert found[0].ranks == ("hospital", "bank") and found[0].models[1].lanes == 3
    assert found[0].own.weights == {"one": str(folder / "w.safetensors")}
    assert found[0].data != found[1].data and all(url.startswith("http://127.0.0.1:") for url in roles.urls.values())
