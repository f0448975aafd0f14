"""Who the parties are: their keys, their certificates, and the file that lists where each of them is.

An identity is an Ed25519 key with a self-signed certificate whose common name is the party's name. Trust is pinning:
a party file holds the certificate of every party, and a link is accepted only from the holder of exactly that
certificate. There is no certificate authority and no host name check. A party file is TOML, paths relative to it:

    [parties.bank]
    address = "127.0.0.1:7001"
    lanes = ["127.0.0.2:7001"]                # optional: where lane 1, 2, ... are; else on the ports that follow
    certificate = "bank.crt"                  # or certificate_pem = '''-----BEGIN CERTIFICATE----- ...'''
    fingerprint = "sha256:..."                # optional; checked against the certificate

    [contributors.hospital]                   # optional; who shares rows before a training, and takes no part in it
    certificate = "hospital.crt"
    [dealer]                                  # optional; same keys as a party
    [me]
    identity = "keys/bank"                    # folder made by `create`
    listen = "0.0.0.0:7001"                   # optional; when it differs from the address others dial
    skipped_runs = 16                         # optional; most prepared runs to give up because a peer used up more
    [timeouts]
    connect_s = 30
    receive_s = 60                            # longest silence of a peer that has something to send
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from protocols.errors import ConfigError, explain
from protocols.files import read_secret, write_atomically, write_secret
from protocols.names import DEALER, NAME_RULE, is_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEY_FILE = "identity.key"
CERTIFICATE_FILE = "identity.crt"
_KEY = "a private key"
_LIFETIME = timedelta(days=20 * 365)
MOST_LANES = 256


@dataclass(frozen=True)
class Identity:
    """A party's own name, certificate and private key file. The key itself stays in its file."""

    name: str
    certificate_path: Path
    key_path: Path
    fingerprint: str


@dataclass(frozen=True)
class Entry:
    """Where a party is and which certificate it must show; `certificate_pem` is empty only without TLS."""

    name: str
    host: str
    port: int
    certificate_pem: str = ""
    fingerprint: str = ""
    lanes: tuple[tuple[str, int], ...] = ()
    """Where lane 1, 2, ... are, as far as it is not on the ports that follow."""

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def at_lane(self, lane: int) -> Entry:
        """The same party where its process of this lane is."""
        host, port = self.lanes[lane - 1] if 0 < lane <= len(self.lanes) else (self.host, self.port + lane)
        return replace(self, host=host, port=port)


@dataclass(frozen=True)
class Timeouts:
    """Longest waits in seconds: for all peers to connect, and for a silent peer to send what is due."""

    connect_s: float = 30.0
    receive_s: float = 60.0


@dataclass(frozen=True)
class PartiesConfig:
    """A party file. `parties` are the online parties by name; `dealer` is the helper process, if there is one.

    `contributors` only share rows before a training, and have no address.
    """

    parties: Mapping[str, Entry]
    dealer: Entry | None = None
    identity: Path | None = None
    listen: tuple[str, int] | None = None
    skipped_runs: int = 16
    timeouts: Timeouts = field(default_factory=Timeouts)
    path: Path | None = None
    contributors: Mapping[str, Entry] = field(default_factory=dict)
    lane: int = 0

    def at_lane(self, lane: int) -> PartiesConfig:
        """The same parties where their processes of this lane are: a session of its own beside those of other lanes.

        Each party's lane k is on its port + k, unless its entry says otherwise; the dealer is where it is.
        Raises ConfigError where an address is not to be had.
        """
        if lane == self.lane:
            return self
        if self.lane or not 0 <= lane < MOST_LANES:
            what = f"there is no lane {lane} of lane {self.lane}" if self.lane else f"there is no lane {lane}"
            raise ConfigError(explain(what, fix=f"lanes are 0 to {MOST_LANES - 1}, of a configuration as it was read"))
        parties = {name: entry.at_lane(lane) for name, entry in self.parties.items()}
        for name, entry in parties.items():
            self._check_free(name, entry, lane)
        listen = self.listen and (self.listen[0], self.listen[1] + lane)
        return replace(self, parties=parties, listen=listen, lane=lane)

    def _check_free(self, name: str, entry: Entry, lane: int) -> None:
        """Raises ConfigError where a lane of a party has no port, or one up to it is where another role is."""
        first = self.parties[name]
        taken = [*self.parties.values(), *([self.dealer] if self.dealer else [])]
        ports = range(first.port + 1, first.port + lane + 1) if entry.port == first.port + lane else [entry.port]
        why = f"port {entry.port} is none" if entry.port > 65535 else ""
        for other in taken:
            if other.name != name and other.host == entry.host and other.port in ports:
                why = f"{other.name!r} is at {other.address}"
        if why:
            raise ConfigError(
                explain(
                    f"party {name!r} has no room for lane {lane}",
                    where=str(self.path or "the parties' configuration"),
                    why=why,
                    fix=f"leave the {lane} ports after each address free, or name lanes = [...] in [parties.{name}]",
                )
            )

    def entry(self, name: str) -> Entry:
        """The party or dealer of that name. Raises ConfigError."""
        return self._found(name, self.dealer if name == DEALER else self.parties.get(name), "parties")

    def contributor(self, name: str) -> Entry:
        """The contributor of that name. Raises ConfigError."""
        return self._found(name, self.contributors.get(name), "contributors")

    def _found(self, name: str, found: Entry | None, kind: str) -> Entry:
        if found is None:
            listed, others = self.parties, self.contributors
            if kind == "contributors":
                listed, others = others, listed
            known = [*listed, *([DEALER] if self.dealer and listed is self.parties else [])]
            fix = f"add [{DEALER if name == DEALER else f'{kind}.{name}'}] or use one of these names"
            if name in others:
                is_one = f"{name!r} is a {'party' if kind == 'contributors' else 'contributor'}"
                fix = f"use one of these names: {is_one}; parties take part, contributors share their rows and leave"
            raise ConfigError(
                explain(
                    f"there is no {'contributor' if kind == 'contributors' else 'party'} {name!r}",
                    where=str(self.path or "the parties' configuration"),
                    why=f"it lists {', '.join(known) or 'none'}",
                    fix=fix,
                )
            )
        return found

    def roster_digest(self) -> bytes:
        """32 bytes that are equal for two configurations that list the same parties and certificates."""
        entries = [*self.parties.values(), *([self.dealer] if self.dealer else [])]
        lines = sorted(f"{entry.name} {entry.fingerprint}\n" for entry in entries)
        lines += sorted(f"contributor {name} {entry.fingerprint}\n" for name, entry in self.contributors.items())
        return hashlib.sha256("".join(lines).encode()).digest()


def create(name: str, directory: str | Path) -> Identity:
    """Make a new identity in a folder: a private key only its owner can read, and a certificate to hand to the others.

    Raises ConfigError if the name is not usable or the folder already holds an identity.
    """
    if not (is_name(name) or name == DEALER):
        raise ConfigError(explain(f"{name!r} cannot be a party's name", why=NAME_RULE, fix="choose another name"))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for file in (KEY_FILE, CERTIFICATE_FILE):
        if (directory / file).exists():
            raise _exists(directory / file)
    key = Ed25519PrivateKey.generate()
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificate_pem = _self_signed(name, key).public_bytes(serialization.Encoding.PEM)
    try:
        write_secret(directory / KEY_FILE, key_pem, _KEY, new=True)
        write_atomically(directory / CERTIFICATE_FILE, certificate_pem, new=True)
    except FileExistsError:
        raise _exists(directory) from None
    return load(directory)


def load(directory: str | Path) -> Identity:
    """The identity in a folder made by `create`. Raises ConfigError if a file is missing, unusable or too open."""
    key_path, certificate_path = Path(directory) / KEY_FILE, Path(directory) / CERTIFICATE_FILE
    certificate = _parse_certificate(_read(certificate_path), str(certificate_path))
    key_pem = _read(key_path, lambda path: read_secret(path, _KEY))
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        # The error of the parser is not passed on: its text could quote the file.
        raise ConfigError(
            explain(f"not a usable private key ({type(error).__name__})", where=str(key_path), fix="restore the file")
        ) from None
    if _public_bytes(key.public_key()) != _public_bytes(certificate.public_key()):
        raise ConfigError(
            explain(
                "the private key does not belong to the certificate",
                where=str(directory),
                fix="keep the two files that were made together",
            )
        )
    return Identity(_common_name(certificate), certificate_path, key_path, fingerprint(certificate))


def fingerprint(certificate: x509.Certificate | bytes) -> str:
    """'sha256:' and 64 hexadecimal digits, of a certificate or of its DER bytes."""
    der = certificate if isinstance(certificate, bytes) else certificate.public_bytes(serialization.Encoding.DER)
    return "sha256:" + hashlib.sha256(der).hexdigest()


def load_config(path: str | Path, *, require_certificates: bool = True) -> PartiesConfig:
    """Read a party file. Raises ConfigError that names the file and, where possible, the line.

    Without `require_certificates` entries may lack one; such a configuration only works for plain links on one host.
    """
    path = Path(path)
    text = _read(path).decode("utf-8", errors="replace")
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers that are too long, and tables that are too deep
        raise ConfigError(explain("a party file is not valid TOML", where=str(path), why=str(error))) from None
    return _Reader(path, text, require_certificates).config(tables)


def plain_config(addresses: Mapping[str, str], *, dealer: str = "", timeouts: Timeouts | None = None) -> PartiesConfig:
    """A configuration without certificates, for links inside one host. `addresses`: 'host:port' by party name."""
    reader = _Reader(Path("plain_config()"), "", False)
    return PartiesConfig(
        {name: reader.entry(name, {"address": address}, "parties." + name) for name, address in addresses.items()},
        reader.entry(DEALER, {"address": dealer}, DEALER) if dealer else None,
        timeouts=timeouts or Timeouts(),
    )


@dataclass(frozen=True)
class _Reader:
    """Turns the tables of one file into configuration objects; its errors say which line."""

    path: Path
    text: str
    require_certificates: bool

    def config(self, tables: dict[str, Any]) -> PartiesConfig:
        self.only(tables, ("parties", "contributors", "dealer", "me", "timeouts"), "")
        parties = {name: self.entry(name, self.table(t, f"parties.{name}"), f"parties.{name}")
                   for name, t in self.table(tables.get("parties", {}), "parties").items()}  # fmt: skip
        if len(parties) < 2:
            raise self.error(
                "a party file needs at least two parties", "", f"it lists {len(parties)}", "add [parties.NAME]"
            )
        dealer = self.entry(DEALER, self.table(tables["dealer"], "dealer"), "dealer") if "dealer" in tables else None
        contributors = {name: self.contributor(name, self.table(t, f"contributors.{name}"))
                        for name, t in self.table(tables.get("contributors", {}), "contributors").items()}  # fmt: skip
        self.no_duplicates([*parties.values(), *contributors.values(), *([dealer] if dealer else [])])
        me = self.table(tables.get("me", {}), "me")
        self.only(me, ("identity", "listen", "skipped_runs"), "me")
        times = self.table(tables.get("timeouts", {}), "timeouts")
        self.only(times, ("connect_s", "receive_s"), "timeouts")
        for key, value in times.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
                raise self.error(
                    f"{key} = {value!r} is not a number of seconds", "timeouts", "", "use, for example, 30", key
                )
        identity = self.text_of(me, "identity", "me", "")
        listen = self.text_of(me, "listen", "me", "")
        skipped = me.get("skipped_runs", PartiesConfig.skipped_runs)
        if isinstance(skipped, bool) or not isinstance(skipped, int) or skipped < 0:
            raise self.error(
                f"skipped_runs = {skipped!r} is not a number of runs", "me", "", "use, for example, 16", "skipped_runs"
            )
        return PartiesConfig(
            parties,
            dealer,
            self.path.parent / identity if identity else None,
            self.address(listen, "me", "listen") if listen else None,
            skipped,
            Timeouts(**{key: float(value) for key, value in times.items()}),
            self.path,
            contributors,
        )

    def contributor(self, name: str, table: dict[str, Any]) -> Entry:
        where = f"contributors.{name}"
        self.only(table, ("certificate", "certificate_pem", "fingerprint"), where)
        return self.certified(name, table, where, "", 0)

    def entry(self, name: str, table: dict[str, Any], where: str) -> Entry:
        lanes = ("lanes",) if where != DEALER else ()
        self.only(table, ("address", *lanes, "certificate", "certificate_pem", "fingerprint"), where)
        host, port = self.address(self.text_of(table, "address", where), where, "address")
        found = self.certified(name, table, where, host, port)
        named = table.get("lanes", [])
        if not isinstance(named, list) or not all(isinstance(text, str) for text in named):
            raise self.error("lanes is no list of addresses", where, "", 'write lanes = ["host:port", ...]', "lanes")
        return replace(found, lanes=tuple(self.address(text, where, "lanes") for text in named))

    def certified(self, name: str, table: dict[str, Any], where: str, host: str, port: int) -> Entry:
        """The entry of somebody with the certificate that a table gives."""
        if not (is_name(name) or where == DEALER):
            raise self.error(f"{name!r} cannot be a party's name", where, NAME_RULE, "choose another name")
        pem = self.text_of(table, "certificate_pem", where, "")
        file = self.text_of(table, "certificate", where, "")
        if pem and file:
            raise self.error("both certificate and certificate_pem are given", where, "", "keep one", "certificate_pem")
        if file:
            pem = _read(self.path.parent / file).decode("ascii", errors="replace")
        claimed = self.text_of(table, "fingerprint", where, "")
        if not pem:
            if self.require_certificates:
                fix = "ask that party for its certificate file and check its fingerprint with them by telephone"
                raise self.error(f"no certificate is given for {name!r}", where, "links are authenticated by it", fix)
            return Entry(name, host, port)
        certificate = _parse_certificate(pem.encode(), file or f"{self.path}, [{where}]")
        found = fingerprint(certificate)
        if claimed and claimed.lower() != found:
            why = f"the certificate has {found}, the file says {claimed}"
            fix = "one of the two was replaced: ask that party which fingerprint is right"
            raise self.error(f"the certificate of {name!r} is not the expected one", where, why, fix, "fingerprint")
        if _common_name(certificate) != name:
            why = f"the certificate was made for {_common_name(certificate)!r}"
            raise self.error(
                f"the certificate of {name!r} is of another party", where, why, "use that name, or its file"
            )
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        return Entry(name, host, port, pem, found)

    def address(self, text: str, where: str, key: str) -> tuple[str, int]:
        host, colon, port = text.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not (colon and host and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
            raise self.error(f"{text!r} is not an address", where, "", "write host:port, or [IPv6]:port", key)
        return host, int(port)

    def no_duplicates(self, entries: list[Entry]) -> None:
        for position, entry in enumerate(entries):
            for other in entries[:position]:
                kind = "parties" if entry.port else "contributors"
                section = DEALER if entry.name == DEALER else f"{kind}.{entry.name}"
                if entry.port and entry.address == other.address:
                    what = f"{other.name!r} and {entry.name!r} have the same address {entry.address}"
                    raise self.error(what, section, "", "give each party an address of its own", "address")
                if entry.fingerprint and entry.fingerprint == other.fingerprint:
                    what = f"{other.name!r} and {entry.name!r} have the same certificate"
                    raise self.error(what, section, "", "give each party an identity of its own")

    def table(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"{where} is not a table", where, "", f"write [{where}] and its keys below it")
        return value

    def text_of(self, table: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
        value = table.get(key, default)
        if not isinstance(value, str):
            what = f"{key} is missing" if value is None else f"{key} is not a text"
            raise self.error(what, where, "", f'write {key} = "..."', key)
        return value

    def only(self, table: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
        for key in table:
            if key not in keys:
                raise self.error(f"{key!r} is not a known key", where, f"known are {', '.join(keys)}", "remove it", key)

    def error(self, what: str, section: str, why: str, fix: str, key: str = "") -> ConfigError:
        line = self.line(section, key)
        where = f"{self.path}{f', line {line}' if line else ''}{f', [{section}]' if section else ''}"
        return ConfigError(explain(what, where=where, why=why, fix=fix))

    def line(self, section: str, key: str) -> int:
        """The line of a key in a section, or of the section, counted from 1; 0 if it is written in another way."""
        start, inside = 0, not section
        for number, line in enumerate(self.text.splitlines(), 1):
            heading = re.match(r"\s*\[([^\[\]]+)\]", line)
            if heading:
                inside = heading[1].strip() == section
                start = number if inside else start
                if not section and heading[1].strip().split(".")[0] == key:
                    return number
            elif inside and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return number
        return start


def _self_signed(name: str, key: Ed25519PrivateKey) -> x509.Certificate:
    common_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(common_name)
        .issuer_name(common_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # the clocks of the parties may differ
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    return builder.sign(key, None)


def _parse_certificate(pem: bytes, where: str) -> x509.Certificate:
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        if len(certificates) != 1:
            raise ValueError(f"it holds {len(certificates)} certificates, expected 1")
        certificates[0].subject, certificates[0].public_key()  # parsed only now
        return certificates[0]
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise ConfigError(
            explain("not a certificate", where=where, why=str(error), fix=f"use a party's {CERTIFICATE_FILE}")
        ) from None


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _public_bytes(key: Any) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _read(path: Path, how: Callable[[Path], bytes] = Path.read_bytes) -> bytes:
    try:
        return how(path)
    except (OSError, ValueError) as error:  # a path may hold a zero byte
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(explain("a file cannot be read", where=str(path), why=why)) from None


def _exists(path: Path) -> ConfigError:
    return ConfigError(
        explain(
            "there is an identity already",
            where=str(path),
            why="overwriting it would lock that party out of its sessions",
            fix="choose another folder, or move this one away",
        )
    )
