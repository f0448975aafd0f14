"""Ten sites learn to read digits, each from its own: half of them have mostly small digits, the others mostly large ones.

    securemodel federate examples/federated_plain/rounds.py --local --picture out/federated.svg

Everything but `task` is NumPy: softmax regression on 784 pixels. Whoever trains something else changes `start`, `train`
and `evaluate`.
"""

from pathlib import Path

import numpy as np

from securemodel import federated
from securemodel.edge.rounds import Layout

IMAGES = Path(__file__).parents[1] / "lenet_mnist" / "images.npz"
HELD_OUT = 100
ROUNDS = 10
SITES = tuple(f"site{number}" for number in range(10))


def start():
    """The first model: it knows nothing."""
    return {"weight": np.zeros((784, 10), np.float32), "bias": np.zeros(10, np.float32)}


task = federated.Task(
    "digits",
    federated.weighted_mean(),
    Layout.of(start()),
    slots=len(SITES),
    limit=2.0,  # of a change of a weight in one round
    max_weight=1000,  # rows of a site
    minimum=8,
    aggregators=("north", "south"),
)


def digits():
    """Images in rows of 784 numbers from 0 to 1, and their labels."""
    with np.load(IMAGES) as file:
        return file["images"].reshape(-1, 784) / np.float32(255), file["labels"]


def of_site(number):
    """The rows that one site has: nobody else's."""
    images, labels = (rows[HELD_OUT:] for rows in digits())
    small = np.arange(len(labels)) % 10 < (8 if number % 2 == 0 else 2)
    mine = np.flatnonzero((labels < 5) == small)[number // 2 :: len(SITES) // 2]
    return images[mine], labels[mine]


def probabilities(model, x):
    scores = x @ model["weight"] + model["bias"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def train(site, model, number):
    """Five epochs on the site's own rows: what it changed of the model, and how many rows that is about."""
    x, labels = of_site(SITES.index(site))
    mine = {name: array.copy() for name, array in model.items()}
    for _ in range(5):
        for at in range(0, len(labels), 10):
            rows, error = x[at : at + 10], probabilities(mine, x[at : at + 10])
            error[np.arange(len(rows)), labels[at : at + 10]] -= 1
            mine["weight"] -= 0.1 * rows.T @ error / len(rows)
            mine["bias"] -= 0.1 * error.mean(axis=0)
    return {name: mine[name] - model[name] for name in model}, len(labels)


def evaluate(model):
    """Accuracy on digits that no site has."""
    images, labels = (rows[:HELD_OUT] for rows in digits())
    return float((probabilities(model, images).argmax(axis=1) == labels).mean())
