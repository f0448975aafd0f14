"""Searches a lab's catalog with a hospital's sentences: the lab sees no sentence, the hospital no model.

    securemodel run examples/private_search/search.py --local
    securemodel run examples/private_search/search.py --local -- "Is there a trial on tremor and electrodes?"

The same file runs at both parties. Arguments: sentences; without any, those of queries.txt, which is the hospital's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from model import STEPS, Search, config, load_search, look_up, read_titles, tokens

import securemodel

PARTIES = ("lab", "hospital")
HERE, SHOWN = Path(__file__).parent, 3


def make_program(titles: int = 24) -> securemodel.Program:
    """Ranking as a secure program: for one sentence at a time, whose words and length the hospital alone knows."""
    with torch.device("meta"):
        model = Search(titles).eval()
    examples = (torch.zeros(1, STEPS, config().hidden_size), torch.ones(1, STEPS))
    return securemodel.compile(model, examples, weights="lab", inputs="hospital", outputs="hospital")


def main(sentences: list[str]) -> None:
    titles = read_titles(HERE / "titles.txt")
    with securemodel.connect(make_program(len(titles))) as session:
        hospital = session.me == "hospital"
        session.load(session.program, None if hospital else load_search(titles))
        for number in range(len(sentences)):
            if not hospital:
                session.run(None, None)
                continue
            ranks = session.run(*look_up(tokens(sentences[number : number + 1])))
            sent, stats = sum(session.stats.sent_bytes.values()), session.stats
            print(f"\n{sentences[number]}")
            for place in range(SHOWN):
                print(f"  {place + 1}. {titles[int((ranks == place).nonzero()[0])]}")
            print(f"  {stats.seconds:.2f} s, {stats.rounds} rounds, {sent / 1e6:.1f} MB sent by the hospital")


if __name__ == "__main__":
    main(sys.argv[1:] or read_titles(HERE / "queries.txt"))
