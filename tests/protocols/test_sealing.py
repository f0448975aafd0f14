"""Messages from one identity to another: who can read them, who can have made them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocols import sealing
from protocols.channel.testing import loopback_parties
from protocols.errors import ConfigError, DecodeError
from protocols.sealing import head_of, seal, unseal

HEAD, DATA = b'{"for": "a test"}', bytes(range(256)) * 5
RAW = serialization.Encoding.Raw, serialization.PublicFormat.Raw


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory):
    config, identities = loopback_parties(["bank", "shop"], tmp_path_factory.mktemp("keys"), contributors=["hospital"])
    return config, identities


def test_the_receiver_reads_what_the_sender_sealed(known) -> None:
    config, who = known
    sealed = seal(DATA, HEAD, who["hospital"], config.entry("bank"))
    assert head_of(sealed) == HEAD and unseal(sealed, config.contributor("hospital"), who["bank"]) == DATA
    assert sealed != seal(DATA, HEAD, who["hospital"], config.entry("bank")) and DATA[:32] not in sealed


def test_nobody_else_reads_or_makes_it(known) -> None:
    config, who = known
    hospital, bank = config.contributor("hospital"), config.entry("bank")
    sealed = seal(DATA, HEAD, who["hospital"], bank)
    with pytest.raises(DecodeError, match="not for the identity of 'shop'"):
        unseal(sealed, hospital, who["shop"])
    with pytest.raises(DecodeError, match="not made by whoever has the certificate of 'shop'"):
        unseal(sealed, config.entry("shop"), who["bank"])
    key = serialization.load_pem_private_key(who["shop"].key_path.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    with pytest.raises(DecodeError, match="not for the identity"):  # taken out and signed as one's own
        unseal(key.sign(sealed[64:]) + sealed[64:], config.entry("shop"), who["bank"])


def test_what_the_same_key_signs_elsewhere_is_no_message(known) -> None:
    """Of a certificate and of a TLS handshake (RFC 8446, section 4.4.3): neither can be passed off as a message."""
    config, who = known
    certificate = x509.load_pem_x509_certificate(who["hospital"].certificate_path.read_bytes())
    key = serialization.load_pem_private_key(who["hospital"].key_path.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    spoken = b" " * 64 + b"TLS 1.3, client CertificateVerify\0" + bytes(48)
    for signed, signature in (
        (certificate.tbs_certificate_bytes, certificate.signature),
        (spoken, key.sign(spoken)),
    ):
        with pytest.raises(DecodeError, match="too short"):
            unseal(signature + signed, config.contributor("hospital"), who["bank"])


def test_every_change_is_noticed(known) -> None:
    config, who = known
    sealed = seal(DATA, HEAD, who["hospital"], config.entry("bank"))
    for place in range(0, len(sealed), 7):
        changed = sealed[:place] + bytes([sealed[place] ^ 0x80]) + sealed[place + 1 :]
        with pytest.raises(DecodeError):
            unseal(changed, config.contributor("hospital"), who["bank"])
    for size in (0, 64, 67, 68, 80, len(sealed) - 1):
        with pytest.raises(DecodeError):
            unseal(sealed[:size], config.contributor("hospital"), who["bank"])


def test_the_decrypting_key_is_the_signing_key_on_the_other_form_of_the_curve() -> None:
    for seed in range(20):
        own = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        public = sealing._montgomery(own.public_key())
        assert X25519PrivateKey.from_private_bytes(sealing._scalar(own)).public_key().public_bytes(*RAW) == (
            public.public_bytes(*RAW)
        )
    # the base points: y = 4 / 5 is u = 9
    y = (4 * pow(5, -1, 2**255 - 19) % (2**255 - 19)).to_bytes(32, "little")
    base = sealing.Ed25519PublicKey.from_public_bytes(y)
    assert sealing._montgomery(base).public_bytes(*RAW) == X25519PublicKey.from_public_bytes(
        (9).to_bytes(32, "little")
    ).public_bytes(*RAW)


def test_identities_with_other_keys(known, tmp_path: Path) -> None:
    config, who = known
    key = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "other.key"
    path.write_bytes(key)
    path.chmod(0o600)
    other = type(who["bank"])("bank", who["bank"].certificate_path, path, who["bank"].fingerprint)
    with pytest.raises(ConfigError, match="no certificate with an Ed25519 key"):
        seal(DATA, HEAD, other, config.entry("shop"))
    plain = type(config.entry("bank"))("bank", "127.0.0.1", 1)
    with pytest.raises(ConfigError, match="no certificate with an Ed25519 key"):
        seal(DATA, HEAD, who["bank"], plain)
