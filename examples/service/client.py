"""Asks the service for some digits. The images are split here, and neither party sees one.

    python examples/service/client.py http://127.0.0.1:8440 8

NumPy and the standard library are all it needs; torch is not imported.
"""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import numpy as np

from securemodel import edge

IMAGES = Path(__file__).resolve().parent.parent / "lenet_mnist" / "images.npz"


def main(url: str, count: int) -> None:
    # Take this file from somebody you trust: it says who gets the shares.
    path, _ = urllib.request.urlretrieve(f"{url}/service.json")
    client = edge.Client(path)
    with np.load(IMAGES) as file:
        images, labels = file["images"][:count, None], file["labels"][:count]
    scores = client.infer("lenet5", images)
    for label, digit in zip(labels, scores.argmax(1), strict=True):
        print(f"label {label}, answer {digit}")
    print(f"{int((scores.argmax(1) == labels).sum())} of {count} right")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8440", int(sys.argv[2]) if len(sys.argv) > 2 else 8)
