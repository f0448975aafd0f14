"""What an audit says of a program: the counts are those of a run, and every weak choice has its warning."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

import securemodel
import securemodel.errors
from protocols.channel import HEADER_BYTES
from protocols.channel.testing import loopback_parties
from protocols.identity import load_config
from securemodel.compiler.wire import START
from securemodel.inspect.audit import Audit, Role, audit
from securemodel.program import Program

NAMES = {"weights": "bank", "inputs": "hospital", "outputs": "hospital"}
EXAMPLE = torch.zeros(2, 4)


class Model(torch.nn.Module):
    """A constant of the code, a function by splines, comparisons."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mean = torch.nn.Linear(4, 3), torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x - self.mean)
        return torch.sigmoid(self.layer(x) / 0.3081)


def made(model: torch.nn.Module | None = None, **options) -> Program:
    return securemodel.compile((model or Model()).eval(), EXAMPLE, **{**NAMES, **options})


def role(found: Audit, name: str) -> Role:
    return next(role for role in found.roles if role.name == name)


def warned(program: Program, **options) -> set[str]:
    return {weak.name for weak in audit(program, **options).warnings}


@pytest.mark.parametrize("parties", [("bank", "hospital"), ("bank", "hospital", "helper")], ids=len)
@pytest.mark.parametrize("options", [{}, {"width": 32}, {"reveal": "class"}, {"outputs": "all"}], ids=str)
def test_the_bits_a_party_sees_are_those_it_receives(parties: tuple[str, ...], options: dict) -> None:
    program = made(parties=parties, **options)
    with securemodel.local(program) as session:
        session.run(EXAMPLE)
        for name in parties:
            received = session.channels[name].stats
            found = [seen for seen in role(audit(program), name).sees if "corrections" not in seen.what]
            nbytes = sum(seen.bits for seen in found) // 8
            frames = sum(link.received_messages for link in received.links.values())
            framing = frames * HEADER_BYTES + 2 * (len(parties) - 1) * START.size
            padding = received.received_bytes - framing - nbytes
            assert 0 <= padding < 8 * sum(seen.openings for seen in found) * (len(parties) - 1)


def test_who_brings_sees_learns_and_computes_what() -> None:
    program = made()
    found = audit(program)
    bank, hospital, dealer = (role(found, name) for name in ("bank", "hospital", "dealer"))
    assert bank.brings == ("15 weights",) and bank.learns == () and hospital.learns == ("output",)
    assert hospital.brings == ("input 0 [2, 4]",)
    assert {seen.what for seen in bank.sees} == {"inputs of hospital", "values in between", "bits of comparisons"}
    assert {"weights of bank", "corrections of the dealer", "shares of results"} <= {
        seen.what for seen in hospital.sees
    }
    assert all("test_audit.py" in line for line in hospital.in_the_clear)
    assert not dealer.sees and any("no party" in what for what in dealer.trusted_with)
    (constant,) = (c for c in found.constants if "self.mean" in c.source)
    assert constant.first[:4] == (1.0, 2.0, 3.0, 4.0)
    assert "load" in found.masks["of weights"]
    assert any("[2, 4]" in what for what in found.by_design)


def test_a_text_says_the_same_but_for_lines_of_code(tmp_path: Path) -> None:
    program = made(reveal="all")
    program.save(tmp_path / "program.txt")
    read = audit(Program.load(tmp_path / "program.txt"))
    found = audit(program)
    assert [r.sees for r in read.roles] == [r.sees for r in found.roles] and read.outputs == found.outputs
    assert sum(c.count for c in read.constants) == sum(c.count for c in found.constants)


def test_the_text_and_the_json_of_an_audit() -> None:
    found = audit(made())
    text = str(found)
    assert all(len(line) <= 110 for line in text.splitlines())
    for part in ("bank  brings 15 weights", "hidden by", "weak choice", "self.mean", "dealer"):
        assert part in text
    assert json.loads(json.dumps(found.json()))["roles"][0]["name"] == "bank"


# Weak choices.


def test_scores_and_all_their_bits() -> None:
    linear = torch.nn.Linear(4, 3)
    assert {"scores", "full precision"} <= warned(made(linear))
    assert "full precision" not in warned(made(linear, truncate_outputs=True))
    assert not {"scores", "full precision"} & warned(made(linear, reveal="class"))


def test_fast_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    program = made()
    for rounding, expected in (("fast", True), ("exact", False)):
        monkeypatch.setitem(program.header.__dict__, "rounding", rounding)
        assert ("fast rounding" in warned(program)) is expected
    assert audit(made(torch.nn.Linear(4, 3))).rounding == "none"


def test_public_weights_and_results_for_all() -> None:
    program = made(weights="public", inputs="hospital", outputs="all", parties=("hospital", "bank"))
    assert {"public weights", "revealed to all"} <= warned(program)
    assert not {"public weights", "revealed to all"} & warned(made())


def test_paillier() -> None:
    linear = made(torch.nn.Linear(4, 3), protocol="paillier")
    assert {"linear scores", "scores"} <= warned(linear) and "short key" not in warned(linear)
    found = audit(linear)
    assert [r.name for r in found.roles] == ["bank", "hospital"]  # no dealer
    assert role(found, "hospital").sees[0].what == "linear scores"
    short = made(torch.nn.Linear(4, 3), protocol="paillier", insecure_key_bits=512)
    assert "short key" in warned(short)
    layers = torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
    deep = audit(made(torch.nn.Sequential(*layers), protocol="paillier"))
    assert [r.name for r in deep.roles] == ["bank", "hospital", "dealer"]
    assert any("Paillier key" in seen.hidden_by for seen in role(deep, "bank").sees)


def test_crypten() -> None:
    with pytest.warns(securemodel.errors.InsecureBackendWarning):
        program = made(torch.nn.Linear(4, 3), protocol="crypten")
    found = audit(program)
    assert "crypten" in {weak.name for weak in found.warnings}
    assert "everything" in role(found, "bank").trusted_with[0]


def certificate(key: Ed25519PrivateKey, name: str, organization: str) -> bytes:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)]
    subject, now = x509.Name(names), datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(
        subject, subject, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
    )
    return builder.sign(key, None).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("same", ["public key", "organization", None])
def test_a_dealer_that_is_a_party(tmp_path: Path, same: str | None) -> None:
    config, _ = loopback_parties(("bank", "hospital"), tmp_path, dealer=True)
    keys = [Ed25519PrivateKey.generate() for _ in range(2)]
    keys[1] = keys[0] if same == "public key" else keys[1]
    made_for = {"bank": (keys[0], "Bank AG"), "dealer": (keys[1], " bank ag" if same == "organization" else "Others")}
    for name, (key, organization) in made_for.items():
        (tmp_path / name / "identity.crt").write_bytes(certificate(key, name, organization))
    found = [weak for weak in audit(made(), load_config(config.path)).warnings if weak.name == "dealer is a party"]
    assert len(found) == bool(same) and (not same or (same in found[0].what and "bank" in found[0].what))
