"""Whether two parties hold the same bytes, and nothing else about them: Diffie-Hellman on a point that is their hash.

Each party has a fresh secret a and sends a H(x); the other multiplies it to b a H(x). Equal bytes give equal results, and
of others each sees a random point (decisional Diffie-Hellman), so nobody can try out guesses afterwards: a party learns
whether the other holds exactly what it used itself, once a session. What each sends back is a hash of its result, of both
points and of who says it to whom: what was heard, here or from another party, cannot be said again as one's own (it would
pass for equal otherwise). Curve25519 [RFC 7748]; H counts up until it finds a point of the curve, not of its twist.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocols.errors import ProtocolError, explain

POINT_BYTES = ANSWER_BYTES = 32
_P, _A = 2**255 - 19, 486662


class Equality:
    """One party's side towards one peer. `first` is sent; `second` answers what came; `is_equal` compares."""

    def __init__(self, data: bytes, session: bytes, me: str, peer: str) -> None:
        """`session` is the same at both and that of no other session; `me` and `peer` are the two parties' names."""
        self._key, self._theirs, self._names = X25519PrivateKey.generate(), b"", (me, peer)
        self.first = self._times(_point(hashlib.sha256(b"equality" + session + hashlib.sha256(data).digest()).digest()))

    def second(self, received: bytes) -> bytes:
        """The answer to the peer's first message. Raises ProtocolError for a point that is none."""
        result, (me, peer) = self._times(received), self._names
        self._theirs = _answer(result, peer, me, received, self.first)
        return _answer(result, me, peer, self.first, received)

    def is_equal(self, received: bytes) -> bool:
        """Whether the peer's answer says that both hold the same."""
        return hmac.compare_digest(self._theirs, received)

    def _times(self, point: bytes) -> bytes:
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(point))
        except ValueError:
            raise ProtocolError(explain("a message of the comparison is no point of the curve",
                                        fix="do not trust the peer or the link")) from None  # fmt: skip


def _answer(result: bytes, sender: str, receiver: str, first: bytes, second: bytes) -> bytes:
    names = b"".join(len(name.encode()).to_bytes(4, "little") + name.encode() for name in (sender, receiver))
    return hashlib.sha256(b"equality answer" + first + second + result + names).digest()


def _point(seed: bytes) -> bytes:
    """A point of the curve whose logarithm nobody knows: u with u^3 + A u^2 + u a square."""
    for count in range(1 << 16):
        u = int.from_bytes(hashlib.sha256(seed + count.to_bytes(2, "little")).digest(), "little") % _P
        if u and pow(u * (u * u + _A * u + 1) % _P, (_P - 1) // 2, _P) == 1:
            return u.to_bytes(POINT_BYTES, "little")
    raise AssertionError("half of all numbers are points")
