"""Identities and party files: what is written, what is refused, and whether the message says where."""

from __future__ import annotations

import os
import pickle
import re
import stat
from pathlib import Path

import pytest

from protocols import errors, identity
from protocols.errors import ConfigError


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    for name in ("bank", "hospital", "dealer"):
        identity.create(name, directory / name)
    return directory


def party_file(keys: Path, text: str) -> Path:
    path = keys / "parties.toml"
    path.write_text(text)
    return path


GOOD = """[parties.bank]
address = "127.0.0.1:7001"
certificate = "bank/identity.crt"
[parties.hospital]
address = "[::1]:7002"
certificate = "hospital/identity.crt"
[dealer]
address = "dealer.example:7003"
certificate = "dealer/identity.crt"
[me]
identity = "bank"
listen = "0.0.0.0:7001"
[timeouts]
connect_s = 5
receive_s = 7.5
"""


def test_identity_files(tmp_path: Path) -> None:
    made = identity.create("bank", tmp_path / "keys" / "bank")
    assert stat.S_IMODE(os.stat(made.key_path).st_mode) == 0o600
    assert made == identity.load(tmp_path / "keys" / "bank")
    assert made.name == "bank" and made.fingerprint.startswith("sha256:") and len(made.fingerprint) == 7 + 64
    assert sorted(file.name for file in made.key_path.parent.iterdir()) == ["identity.crt", "identity.key"]
    secret = made.key_path.read_text().splitlines()[1]
    assert secret not in repr(made)


def test_identity_is_never_overwritten(tmp_path: Path) -> None:
    made = identity.create("bank", tmp_path)
    before = made.key_path.read_bytes()
    with pytest.raises(ConfigError, match="already"):
        identity.create("bank", tmp_path)
    made.certificate_path.unlink()
    with pytest.raises(ConfigError, match="already"):
        identity.create("bank", tmp_path)
    assert made.key_path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "1bank", "a/b", "a b", "x" * 65, "bank\n"])
def test_bad_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name"):
        identity.create(name, tmp_path / "x")


def test_load_refuses_open_key(tmp_path: Path) -> None:
    made = identity.create("bank", tmp_path)
    made.key_path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        identity.load(tmp_path)


def test_load_refuses_missing_broken_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        identity.load(tmp_path / "none")
    first, second = identity.create("a", tmp_path / "a"), identity.create("b", tmp_path / "b")
    first.key_path.write_bytes(second.key_path.read_bytes())
    with pytest.raises(ConfigError, match="does not belong"):
        identity.load(tmp_path / "a")
    first.key_path.write_text("SECRETTEXT")
    with pytest.raises(ConfigError, match="not a usable private key") as caught:
        identity.load(tmp_path / "a")
    assert "SECRETTEXT" not in str(caught.value)
    second.certificate_path.write_text("nonsense")
    with pytest.raises(ConfigError, match="not a certificate"):
        identity.load(tmp_path / "b")


def test_good_party_file(keys: Path) -> None:
    config = identity.load_config(party_file(keys, GOOD))
    assert list(config.parties) == ["bank", "hospital"]
    assert config.entry("bank").fingerprint == identity.load(keys / "bank").fingerprint
    assert (config.entry("hospital").host, config.entry("hospital").port) == ("::1", 7002)
    assert config.entry("hospital").address == "[::1]:7002"
    assert config.entry("dealer").host == "dealer.example"
    assert config.identity == keys / "bank" and config.listen == ("0.0.0.0", 7001)
    assert (config.timeouts.connect_s, config.timeouts.receive_s) == (5.0, 7.5)
    with pytest.raises(ConfigError, match="no party 'shop'"):
        config.entry("shop")


def test_inline_certificate_and_fingerprint(keys: Path) -> None:
    pem = (keys / "bank" / "identity.crt").read_text()
    text = GOOD.replace('certificate = "bank/identity.crt"', f'certificate_pem = """{pem}"""')
    text = text.replace(
        "[parties.hospital]", f'fingerprint = "{identity.load(keys / "bank").fingerprint}"\n[parties.hospital]'
    )
    inline = identity.load_config(party_file(keys, text))
    assert inline.roster_digest() == identity.load_config(party_file(keys, GOOD)).roster_digest()


def test_roster_digest_sees_every_certificate(keys: Path, tmp_path: Path) -> None:
    config = identity.load_config(party_file(keys, GOOD))
    without = identity.load_config(party_file(keys, GOOD.split("[dealer]")[0]))
    assert config.roster_digest() != without.roster_digest()
    other = identity.create("dealer", tmp_path / "other")
    text = GOOD.replace("dealer/identity.crt", str(other.certificate_path))
    assert identity.load_config(party_file(keys, text)).roster_digest() != config.roster_digest()


@pytest.mark.parametrize(
    ("old", "new", "message", "line"),
    [
        ('address = "127.0.0.1:7001"', 'adress = "127.0.0.1:7001"', "'adress' is not a known key", 2),
        ('address = "127.0.0.1:7001"', "", "address is missing", 1),
        ('address = "127.0.0.1:7001"', "address = 7001", "address is not a text", 2),
        ('"127.0.0.1:7001"', '"127.0.0.1"', "not an address", 2),
        ('"127.0.0.1:7001"', '"127.0.0.1:70000"', "not an address", 2),
        ('"127.0.0.1:7001"', '":7001"', "not an address", 2),
        ('"[::1]:7002"', '"127.0.0.1:7001"', "the same address", 5),
        ("hospital/identity.crt", "bank/identity.crt", "another party", 4),
        ('certificate = "bank/identity.crt"', "", "no certificate is given for 'bank'", 1),
        ("bank/identity.crt", "gone.crt", "cannot be read", 0),
        ("connect_s = 5", "connect_s = 0", "not a number of seconds", 14),
        ("connect_s = 5", "connect_s = true", "not a number of seconds", 14),
        ('listen = "0.0.0.0:7001"', "skipped_runs = -1", "not a number of runs", 12),
        ("connect_s = 5", "patience = 5", "'patience' is not a known key", 14),
        ("[timeouts]", "[timeout]", "'timeout' is not a known key", 13),
        ("[parties.hospital]", "[parties.dealer]", "none of all, dealer, public", 4),
        ("[parties.bank]", "[parties.1bank]", "a name starts with a letter", 1),
        ("[parties.bank]", '[parties."../bank"]', "a name starts with a letter", 0),
        ("[parties.bank]", "[parties.all]", "none of all, dealer, public", 1),
    ],
)
def test_bad_party_files(keys: Path, old: str, new: str, message: str, line: int) -> None:
    assert old in GOOD
    path = party_file(keys, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        identity.load_config(path)
    if line:
        assert re.search(rf"{re.escape(str(path))}, line {line}\b", str(caught.value))


def test_wrong_fingerprint(keys: Path) -> None:
    text = GOOD.replace("[parties.hospital]", f'fingerprint = "sha256:{"0" * 64}"\n[parties.hospital]')
    with pytest.raises(ConfigError, match="not the expected one") as caught:
        identity.load_config(party_file(keys, text))
    assert "line 4" in str(caught.value)


def test_other_bad_texts(keys: Path) -> None:
    with pytest.raises(ConfigError, match="valid TOML"):
        identity.load_config(party_file(keys, "[parties.bank\n"))
    with pytest.raises(ConfigError, match="valid TOML"):
        identity.load_config(party_file(keys, GOOD + GOOD))  # every party twice
    with pytest.raises(ConfigError, match="at least two"):
        identity.load_config(party_file(keys, GOOD.split("[parties.hospital]")[0]))
    with pytest.raises(ConfigError, match="cannot be read"):
        identity.load_config(keys / "none.toml")
    with pytest.raises(ConfigError, match="not a table"):
        identity.load_config(party_file(keys, 'parties = "x"'))


def test_plain_config() -> None:
    config = identity.plain_config({"a": "127.0.0.1:1", "b": "127.0.0.1:2"}, dealer="127.0.0.1:3")
    assert config.entry("dealer").port == 3 and not config.entry("a").certificate_pem


def test_errors_are_complete_texts_and_survive_pickling() -> None:
    text = errors.explain("it broke", where="here", why="because", fix="mend it")
    for kind in (errors.PeerDied, errors.BadFrame, errors.PeerAborted):
        copy = pickle.loads(pickle.dumps(kind("bank", text)))
        assert type(copy) is kind and copy.party == "bank"
        assert all(part in str(copy) for part in ("it broke", "here", "because", "mend it"))
    assert str(pickle.loads(pickle.dumps(ConfigError(text)))) == text
    assert errors.summary(ConfigError(text)) == "it broke (here)"
    assert "it broke" in errors.summary(errors.PeerAborted("bank", "it broke"))
    assert errors.summary(RuntimeError("[1, 2, 3]")) == "it was stopped by RuntimeError"
    assert issubclass(errors.InputError, ValueError)


def test_a_key_in_a_folder_that_others_can_change_is_refused(tmp_path: Path) -> None:
    identity.create("bank", tmp_path / "bank")
    (tmp_path / "bank").chmod(0o777)
    with pytest.raises(ConfigError, match="folder that other users of this machine can change"):
        identity.load(tmp_path / "bank")


CONTRIBUTOR = """[parties.bank]
address = "127.0.0.1:7001"
certificate = "bank/identity.crt"
[parties.dealt]
address = "[::1]:7002"
certificate_pem = '''{pem}'''
[contributors.hospital]
certificate = "hospital/identity.crt"
"""


def test_contributors_have_certificates_and_no_address(keys: Path, tmp_path: Path) -> None:
    text = CONTRIBUTOR.format(pem=identity.create("dealt", tmp_path / "dealt").certificate_path.read_text())
    config = identity.load_config(party_file(keys, text))
    assert config.contributor("hospital").fingerprint == identity.load(keys / "hospital").fingerprint
    assert list(config.parties) == ["bank", "dealt"]
    without = identity.load_config(party_file(keys, text[: text.index("[contributors")]))
    assert without.roster_digest() != config.roster_digest()
    for name, kind in {"bank": "contributor", "hospital": "entry"}.items():
        with pytest.raises(ConfigError, match=f"no {'contributor' if kind == 'contributor' else 'party'} '{name}'"):
            getattr(config, "contributor" if kind == "contributor" else "entry")(name)
    wrong = {
        'certificate = "hospital/identity.crt"\naddress = "127.0.0.1:1"': "'address' is not a known key",
        'certificate = "bank/identity.crt"': "is of another party",
        "": "no certificate is given for 'hospital'",
    }
    for line, said in wrong.items():
        changed = text.replace('certificate = "hospital/identity.crt"', line)
        with pytest.raises(ConfigError, match=said) as error:
            identity.load_config(party_file(keys, changed))
        assert "[contributors.hospital]" in str(error.value)
    twice = text.replace("contributors.hospital", "contributors.bank").replace("hospital/", "bank/")
    with pytest.raises(ConfigError, match="same certificate"):
        identity.load_config(party_file(keys, twice))
