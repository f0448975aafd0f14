"""SERVICE.toml is read strictly: what is right is all there, what is wrong is named with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from protocols.channel.testing import loopback_parties
from protocols.errors import ConfigError
from securemodel.service import config as configs
from securemodel.service import tables
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what TEXT names; each test writes a service.toml of its own."""
    made = tmp_path_factory.mktemp("service")
    loopback_parties(("bank", "hospital"), made, dealer=True)
    (made / "infer.py").write_text("")
    return made


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
        ('name = "digits"', "", 1, "service.name is missing"),
        ('name = "digits"', 'name = "digits"\nnmae = 1', 3, "service.nmae is no key"),
        (
            'control = "bank.example:7101"',
            'control = "bank.example"',
            8,
            "fronts\\.bank\\.control is wrong[^$]*HOST:PORT",
        ),
        ('url = "https://bank.example:8443"', 'url = "http://bank.example"', 7, "http://bank.example"),
        ('url = "https://hospital.example"', 'url = "https://hospital.example/x"', 11, "no address"),
        ('url = "https://hospital.example"', 'url = "https://[::1"', 11, "Invalid IPv6"),
        ('url = "https://hospital.example"', 'url = "https://hospital.example:65536"', 11, "(?i)port"),
        ('url = "https://hospital.example"', 'url = "https://hospital .example"', 11, "a space"),
        ('url = "https://hospital.example"', 'url = "https://bank.example:8443/"', 7, "two fronts"),
        ('control = "[2001:db8::1]:7101"', 'control = "bank.example:7101"', 8, "two fronts"),
        ('control = "[2001:db8::1]:7101"', 'control = "[2001:db8::1]:71010"', 12, "no port"),
        ('control = "[2001:db8::1]:7101"', 'control = "[2001:db8::1]:0"', 12, "no port"),
        ('control = "[2001:db8::1]:7101"', 'control = "host:7101\\n"', 12, "HOST:PORT"),
        ('url = "https://hospital.example"', 'url = "https://hospital.example:0"', 11, "1 to 65535"),
        ('url = "https://hospital.example"', 'url = "https://spital.öst"', 11, "xn--"),
        ("[me]", "[limits]\nrequests_per_second = inf\n[me]", 15, "a number <= "),
        ('control = "[2001:db8::1]:7101"', 'control = "[::1]:7101"\nca = "gone.pem"', 13, "no file gone.pem"),
        ('url = "https://hospital.example"', "url = 3", 11, "expected text, got a whole number"),
        ("[fronts.bank]", "[fronts.shop]", 6, "'shop' is not a party|reach 'bank'"),
        ('name = "two"', 'name = "one"', 25, "two models are called 'one'"),
        ("sizes = [1, 8]", "sizes = [8, 1]", 27, "rising"),
        ("sizes = [1, 8]", "sizes = [0, 1]", 27, r"model\[1\]\.sizes\[0\] is wrong[^$]*a whole number >= 1"),
        ("sizes = [1, 8]", "sizes = []", 27, "a list of length >= 1"),
        ("sizes = [1, 8]", "sizes = [1, 4096]", 27, "queue_rows = 2048 is less than .*, 4096"),
        ("sizes = [1, 8]", 'labels = ["a", "b", "a"]', 27, "two classes are called 'a'"),
        ("sizes = [1, 8]", 'reveal = ""', 27, "means nothing"),
        ("lanes = 3", "lanes = 65", 28, "<= 64"),
        ("clamp = [0, 1.5]", "clamp = [2, 1.5]", 21, "lowest"),
        ("clamp = [0, 1.5]", "clamp = [-inf, inf]", 21, "a number >= -1048576"),
        ("clamp = [0, 1.5]", "clamp = [0, nan]", 21, "a number"),
        ("clamp = [0, 1.5]", "clamp = [1]", 21, "a list of length 2, got 1"),
        ('reveal = "top1"', 'reveal = "top"', 22, "means nothing"),
        ('reveal = "top1"', 'script = "infer.py"', 0, "not valid TOML"),
        ('[[model]]\nname = "two"\nscript = "infer.py"', '[[model]]\nname = "two"\nscript = "gone.py"', 26, "gone.py"),
        ('data = "data"', 'data = ""', 15, "a line of text"),
        ('data = "data"', 'data = "data"\nlisten = "0.0.0.0:84430"', 16, "no port"),
        ('data = "data"', 'data = "data"\nmetrics = "0.0.0.0:9464"', 16, "not 127.0.0.1"),
        ('data = "data"', 'data = "data"\ntls_certificate = "a.pem"\ntls_key = "a.pem"', 16, "no file a.pem"),
        ('data = "data"', 'data = "data"\nrest_key_command = []', 16, "a list of length >= 1"),
        ('data = "data"', 'data = "data"\ntls_key = "web.key"', 14, "goes with its key"),
        ('data = "data"', 'data = "data"\nrest_key = "k"\nrest_key_command = ["x"]', 16, "keep one"),
        ('data = "data"', 'data = "data"\nrest_key = ""', 16, "a line of text"),
        ('data = "data"', 'data = "infer.py"', 15, "no folder"),
        ('data = "data"', f'data = "{"a" * 300}"', 15, "no folder"),
        ('script = "infer.py"', f'script = "{"a" * 300}"', 20, "there is no file a"),
        ('script = "infer.py"', 'script = "nul\\u0000"', 20, "a line of text"),
        ('name = "one"', 'name = "one\\n"', 19, "lower-case letters"),
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


# ---- any value at any key
def toml(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else str(value)


WORDS = (
    "", "one", "bank", "client", "infer.py", "../x", "nul\0", "a" * 300, "a/" * 3000, "[::1]:1", "h:0", "h:65536",
    "https://[", "https://é", "http://localhost:8", "top3", "credential:", "é", "\u202e", "x\n",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2**16 - 1, 2**31, 2**62, 2**63, 2**64, -(2**63) - 1)
PARTS = st.one_of(
    st.sampled_from(WORDS), st.text(st.characters(codec="utf-8"), max_size=8), st.sampled_from(NUMBERS), st.floats(),
    st.booleans(), st.dates(),
)  # fmt: skip
VALUES = st.recursive(
    PARTS, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(WORDS), part, max_size=3)
)
PLACES = [
    (table, field.name)
    for table, kind in (
        ("service", tables.Service), ("bank", tables.Front), ("me", tables.Me), ("limits", tables.Limits),
        ("model", tables.Model),
    )
    for field in structs.fields(kind)
]  # fmt: skip


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(PLACES), VALUES)
def test_any_value_at_any_key_is_taken_or_named(folder: Path, at: tuple[str, str], value: object) -> None:
    table, key = at
    found: dict[str, Any] = tables.tomllib.loads(TEXT) | {"limits": {}}
    del found["me"]["weights"]  # which name models
    tables_by_name = {**found, "bank": found["fronts"]["bank"], "model": found["model"][0]}
    tables_by_name[table][key] = value
    try:
        config = load(folder, "\n".join(f"{name} = {toml(part)}" for name, part in found.items()))
    except ConfigError as error:
        named = f"{key}|a file cannot be read" if key == "parties" else key
        assert re.search(named, str(error)) and str(folder) in str(error), error
    else:
        assert len(config.digest()) == 32 and [model.options for model in config.models]


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
