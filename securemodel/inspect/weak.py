"""Weak choices in a program and in a parties file: what each gives away, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from protocols.identity import DEALER, Entry, PartiesConfig
from protocols.names import PUBLIC
from securemodel.compiler.ir import Tuned
from securemodel.compiler.owners import weight_owners
from securemodel.inspect.statement import Output, WeakChoice
from securemodel.program import Program

LEAST_KEY_BITS = 2048


def weak_choices(program: Program, outputs: Iterable[Output]) -> Iterator[WeakChoice]:
    """What the program itself says."""
    protocol, header, outputs = program.protocol, program.header, tuple(outputs)
    if protocol == "crypten":
        what = (
            f"{program.parties[0]} makes all correlated randomness and can read every secret; links are not encrypted"
        )
        yield WeakChoice("crypten", what, 'compile with protocol="masked"; CrypTen is there to compare with')
    if any(out.rounding == "fast" for out in outputs):
        yield WeakChoice(
            "fast rounding",
            "which way a value was rounded depends on bits that were cut off: a receiver of many results learns about them",
            f'{program.maker}(..., rounding="exact")',
        )
    if program.maker != Program.maker:
        yield from _of_training(outputs)
        return
    yield from _of_outputs(outputs, header.frac_bits)
    if PUBLIC in weight_owners(header.weights):
        yield WeakChoice(
            "public weights", "every party has weights of the model in the clear", "name a party as their owner"
        )
    if header.tuned:
        yield _of_tuning(header.tuned)
    yield from _of_paillier(program)


def _of_tuning(tuned: Tuned) -> WeakChoice:
    said = (
        "is told to all parties, by one bit for a run" if tuned.guard else "makes a wrong result, and nothing says so"
    )
    what = (
        f"{len(tuned.limits)} values are looked at in as many bits as an owner's data needed, times {tuned.margin:g}, and "
        f"{tuned.settled} comparisons are left out, and {tuned.tables} tables have fewer pieces: a value beyond that {said}; the "
        "ranges tell every party how large the values of that data were"
    )
    return WeakChoice("tuned ranges", what, "compile without tuned=; or measure on typical rows and on extremes")


def _of_training(outputs: tuple[Output, ...]) -> Iterator[WeakChoice]:
    for out in outputs:
        if out.dtype.startswith("float"):
            what = f"{out.to} learns {out.name} as real numbers: over many steps they tell something about single rows"
            fix = "leave it out of reveal=, or evaluate() it after an epoch"
            yield WeakChoice("exact results", what, fix)
        if out.to == "all":
            fix = "name the party that needs it in reveal= or evaluate="
            yield WeakChoice("revealed to all", f"every party learns {out.name}", fix)


def _of_outputs(outputs: tuple[Output, ...], frac_bits: int) -> Iterator[WeakChoice]:
    for out in outputs:
        if out.dtype.startswith("float"):
            what = (
                f"{out.to} learns {out.name} as real numbers: many of them teach the model, or what it was trained with"
            )
            yield WeakChoice(
                "scores", what, 'compile(..., reveal="class") where the best class is enough; limit the queries'
            )
        if out.excess_bits and out.dtype.startswith("float"):
            what = f"{out.name} goes to {out.to} with {out.fractional_bits} fractional bits where the program has {frac_bits}"
            yield WeakChoice("full precision", what, "compile(..., truncate_outputs=True), for one round")
        if out.to == "all":
            yield WeakChoice(
                "revealed to all", f"every party learns {out.name}", "name the party that needs it in outputs="
            )


def _of_paillier(program: Any) -> Iterator[WeakChoice]:
    settings = getattr(program, "settings", None)
    if settings is None:
        return
    if any(node.op == "decrypt" for node in program.graph.nodes):
        what = f"{program.client} learns the exact linear scores, not only what the model makes of them"
        yield WeakChoice("linear scores", what, 'compile with protocol="masked", which reveals the outputs alone')
    if settings["insecure"] or settings["key_bits"] < LEAST_KEY_BITS:
        what = f"Paillier keys of {settings['key_bits']} bits can be broken"
        yield WeakChoice("short key", what, "compile without insecure_key_bits, with key_bits of 3072")


def same_organisation(program: Program, config: PartiesConfig) -> Iterator[WeakChoice]:
    """Whether the dealer and a party are one by their certificates or addresses: the same key, organization or host."""
    if config.dealer is None:
        return
    for name in program.parties:
        entry = config.parties.get(name)
        how = _in_common(config.dealer, entry) if entry else []
        if how:
            what = f"the {DEALER} and {name} have the same {' and '.join(how)}: whoever is both knows every secret"
            yield WeakChoice("dealer is a party", what, "let someone deal whom all parties trust to stay apart")


def _in_common(dealer: Entry, party: Entry) -> list[str]:
    made = [_marks(dealer), _marks(party)]
    return [what for what, mark in made[0].items() if mark and mark == made[1].get(what)]


def _marks(entry: Entry) -> dict[str, object]:
    marks: dict[str, object] = {"host": "" if entry.host in _THIS_HOST else entry.host}
    if entry.certificate_pem:
        certificate = x509.load_pem_x509_certificate(entry.certificate_pem.encode())
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        marks["public key"] = certificate.public_key().public_bytes(serialization.Encoding.DER, spki)
        marks["organization"] = tuple(str(name.value).casefold().strip() for name in names)
    return marks


_THIS_HOST = ("127.0.0.1", "::1", "localhost")
