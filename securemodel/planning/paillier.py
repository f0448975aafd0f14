"""What a run of an encrypted graph costs, beside what the masked engine would take for the same model."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from protocols.channel import HEADER_BYTES
from protocols.paillier import fixed
from protocols.paillier.affine import AffineShape
from protocols.paillier.powers import schedule
from securemodel.compiler.wire import START
from securemodel.engines.compiling import compile_again
from securemodel.engines.masked import compiling as masked_compiling
from securemodel.engines.paillier.party import key_bytes
from securemodel.engines.paillier.program import PaillierProgram
from securemodel.errors import CompileError
from securemodel.planning.costs import Network, find_network
from securemodel.planning.plan import make_plan as masked_plan
from securemodel.planning.table import Plan
from securemodel.planning.units import bytes_text, count_text, network_text, seconds_text
from securemodel.shown import Shown

ROUNDS = 2
_COLUMNS = 110
_GROWTH = 2.7  # of the time of a power with the size of the key; measured
_AT_ONCE = 16  # numbers that 2 cores with AVX-512 work on side by side


@dataclass(frozen=True)
class Rates:
    """Seconds of an encryption by the key's owner, a blinding factor of the other, a decryption, a product of ciphertexts.

    Measured on 2 cores of an AMD EPYC server with AVX-512, for keys of 2048 bits, many at a time. A blinding factor is
    one that hides also from the key's owner; `row` is what the client does for each row besides.
    """

    encryption: float = 26e-6
    blinding: float = 66e-6
    decryption: float = 166e-6
    product: float = 0.23e-6
    row: float = 35e-6

    def for_bits(self, bits: int) -> Rates:
        """Those for another size of key."""
        factor = bits / 2048
        rates = (self.encryption, self.blinding, self.decryption)
        encryption, blinding, decryption = (rate * factor**_GROWTH for rate in rates)
        return Rates(encryption, blinding, decryption, self.product * factor**2, self.row)


@dataclass(frozen=True, repr=False)
class PaillierPlan(Shown):
    """The costs of one run with the compiled number of rows; print it.

    `opening_bytes` is the client's key, sent once a session. `masked` is the masked engine's plan of the same model, or
    None with the reason in `why_not_masked`.
    """

    digest: str
    network: Network
    client: str
    server: str
    shape: AffineShape
    rates: Rates
    masked: Plan | None
    why_not_masked: str = ""

    @property
    def rounds(self) -> int:
        """Messages one after the other: the request and the answer; exact."""
        return ROUNDS

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """Bytes each party sends in one run, headers included; exact."""
        return {
            self.server: HEADER_BYTES + self.shape.reply_bytes,
            self.client: HEADER_BYTES + START.size + self.shape.request_bytes,
        }

    @property
    def opening_bytes(self) -> int:
        """Bytes of the client's key, once a session, header included; exact."""
        return HEADER_BYTES + key_bytes(self.shape.bits)

    @property
    def preprocessing_bytes(self) -> int:
        """Nothing is dealt."""
        return 0

    @property
    def encryptions(self) -> int:
        """Ciphertexts of the request."""
        return self.shape.groups * self.shape.inputs

    @property
    def decryptions(self) -> int:
        """Ciphertexts of the answer."""
        return self.shape.reply_cells

    @property
    def products(self) -> int:
        """Products of ciphertexts at the server, about."""
        return multiplications(self.shape)

    @property
    def seconds(self) -> float:
        """Predicted time of one run, from the inputs to the outputs."""
        rates, sent = self.rates, sum(self.sent_bytes.values())
        talk = ROUNDS * self.network.latency + 8 * sent / self.network.bandwidth
        client = _full(self.encryptions) * rates.encryption + _full(self.decryptions) * rates.decryption
        client += self.shape.rows * rates.row
        return talk + client + self.products * rates.product + _full(self.decryptions) * rates.blinding

    @property
    def recommended(self) -> str:
        """The protocol whose run is predicted to be shorter: "paillier" or "masked"."""
        return "masked" if self.masked is not None and self.masked.seconds < self.seconds else "paillier"

    @property
    def trust(self) -> str:
        """Who learns what."""
        return (
            f"no third party takes part. {self.client}'s numbers leave it only encrypted under its own key, and "
            f"{self.server} learns nothing. {self.client} learns the linear scores ({_counted(self.shape.outputs, 'number')} "
            "for each row), and computes the outputs from them: after "
            f"{_counted(self.shape.inputs + 1, 'row')} of its choice it knows the whole linear map, so limit how many it may "
            "ask for if that is to stay secret. Both parties must follow the protocol"
        )

    def __str__(self) -> str:
        shape = self.shape
        sent = ", ".join(f"{name} {bytes_text(count)}" for name, count in self.sent_bytes.items())
        return "\n".join(
            [
                (
                    f"program {self.digest[:12]} for Paillier, parties {self.server} (weights), {self.client} (key of "
                    f"{shape.bits} bits)"
                ),
                network_text(self.network),
                (
                    f"one run: {_counted(shape.rows, 'row')} of {_counted(shape.inputs, 'number')}, "
                    f"{_counted(shape.outputs, 'score')} for each"
                ),
                f"  request: {_counted(self.encryptions, 'ciphertext')} to encrypt, {_counted(shape.lanes, 'row')} in each",
                (
                    f"  answer: {_counted(self.decryptions, 'ciphertext')} to decrypt, {_counted(shape.merged, 'score')} of "
                    f"{_counted(shape.lanes, 'row')} in each, in slots of {shape.slot_width} bits"
                ),
                f"  about {count_text(self.products)} products of ciphertexts at {self.server}",
                f"one run sends: {sent}; opening a session, once: {bytes_text(self.opening_bytes)}",
                *self._beside(),
                *textwrap.wrap(f"trust: {self.trust}", _COLUMNS),
                "rounds and bytes are exact; seconds are estimates (docs/encrypted-graphs.md)",
            ]
        )

    def _beside(self) -> list[str]:
        """This plan and the masked engine's, and which is recommended."""
        if self.masked is None:
            return [f"rounds {self.rounds}, about {seconds_text(self.seconds)}; masked engine: {self.why_not_masked}"]
        other, sent = self.masked, sum(self.sent_bytes.values())
        rows = [
            ("", "paillier", "masked"),
            ("rounds", str(self.rounds), str(other.rounds)),
            ("sent by both", bytes_text(sent), bytes_text(sum(other.sent_bytes.values()))),
            ("dealt by a third party", bytes_text(self.preprocessing_bytes), bytes_text(other.preprocessing_bytes)),
            ("seconds", seconds_text(self.seconds), seconds_text(other.seconds)),
        ]
        table = [f"{a:<26}{b:>12}{c:>14}" for a, b, c in rows]
        if self.recommended == "paillier":
            return [*table, "recommended: paillier, the shorter run here, and it needs no dealer"]
        return [*table, "recommended: masked, the shorter run here, if a third party can deal; without one, paillier"]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def multiplications(shape: AffineShape) -> int:
    """Products modulo n^2 that the server makes: tables of its bases, their digits, squarings, and merging."""
    limit = fixed.magnitude(shape.weight_limit, shape.frac_bits)
    bases = int(shape.groups * shape.inputs * schedule(limit, shape.outputs).products)
    merging = (shape.merged - 1) * shape.slot_width * shape.lanes * _full(shape.reply_cells)
    return bases + _full(shape.outputs * shape.groups) * limit.bit_length() + merging


def _full(count: int) -> int:
    """A few numbers take the time of as many as are worked on side by side."""
    return -(-count // _AT_ONCE) * _AT_ONCE


def make_plan(program: PaillierProgram, network: str | Network = "lan", rates: Rates | None = None) -> PaillierPlan:
    """The plan of a program. Raises InputError for an unknown network."""
    network, masked, why = find_network(network), None, "not compared, as this program was read from a file"
    if program.model is not None:
        try:
            masked = masked_plan(compile_again(program, masked_compiling), network)
        except CompileError as error:
            why = str(error).splitlines()[0]
    shape = program.shape
    made = (rates or Rates()).for_bits(shape.bits)
    names = (program.client, program.server)
    return PaillierPlan(program.digest, network, *names, shape, made, masked, why if masked is None else "")
