"""Numbers that a party draws for itself alone: noise that hides what one row changes of a gradient, parts of secret masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from protocols.prg import Stream, Use, new_key


@dataclass(frozen=True)
class Noise:
    """Secret numbers of one party for one vector of a step: standard normal ones, or `uniform` multiples of 2^-16 in [0, 1)."""

    name: str
    party: str
    count: int
    uniform: bool = False


class NoiseSource:
    """Numbers under a key that is kept nowhere; every call gives new ones.

    Normal ones are made as Box and Muller (1958) do, in float64, from 64-bit words of a stream of `protocols.prg`. The
    parties add such numbers, rounded to multiples of 2^-32, to a gradient of such multiples: to round the noise is to
    round the noisy gradient. So the gaps between floats, from which Mironov (CCS 2012) reads what real-valued noise would
    hide, do not show. What is left of float64: no number is above 9.5, which a normal one is once in 2^64 times, and probabilities of multiples of
    2^-32 differ from those of the real distribution by what float64 rounds.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._stream, self._calls = Stream(new_key() if key is None else key), 0

    def draw_for(self, noise: Noise) -> torch.Tensor:
        """New numbers of the kind and count that are wanted, as a float64 vector."""
        return self.uniform(noise.count) if noise.uniform else self.draw(noise.count)

    def uniform(self, count: int) -> torch.Tensor:
        """New uniform multiples of 2^-16 from 0 to 1, without 1."""
        self._calls += 1
        words = self._stream.draw((count,), self._calls, 0, Use.NOISE, torch.int16)
        return (words.double() + 2.0**15) * 2.0**-16

    def draw(self, count: int) -> torch.Tensor:
        """New numbers of the standard normal distribution."""
        self._calls += 1
        words = self._stream.draw((2, (count + 1) // 2), epoch=self._calls, node=0, purpose=Use.NOISE)
        radius = (-2.0 * torch.log(_uniform(words[0]))).sqrt()
        angle = 2.0 * math.pi * _uniform(words[1])
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


def _uniform(words: torch.Tensor) -> torch.Tensor:
    """64-bit words as numbers in (0, 1], small ones with all their digits."""
    high, low = (words >> 32) & 0xFFFFFFFF, words & 0xFFFFFFFF
    return (high.double() * 2.0**32 + (low.double() + 0.5)) * 2.0**-64
