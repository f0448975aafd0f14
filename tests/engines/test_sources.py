"""What a dealer's message carries, cut into shares."""

import torch

from protocols.gates import Part
from securemodel.engines.masked.sources import split_shares


def test_words_behind_an_odd_number_of_bytes():
    parts = [Part("few", "xor", (3,), torch.uint8), Part("words", "add", (2,)), Part("more", "xor", (5,), torch.uint8)]
    few, words, more = (
        torch.tensor([1, 2, 3], dtype=torch.uint8),
        torch.tensor([-5, 2**62]),
        torch.arange(5).to(torch.uint8),
    )
    (made,) = split_shares([torch.cat([few, words.view(torch.uint8), more])], [parts])
    assert (
        made["few"].tolist() == [1, 2, 3]
        and made["words"].tolist() == [-5, 2**62]
        and made["more"].tolist() == [0, 1, 2, 3, 4]
    )
    assert made["words"].dtype == torch.int64
