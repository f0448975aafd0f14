"""What every site does, in NumPy: its own digits, and softmax regression on them. Any other framework does as well."""

from __future__ import annotations

import numpy as np

HELD_OUT = 100


def load(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Images in rows of 784 numbers from 0 to 1, and their labels."""
    with np.load(path) as file:
        return file["images"].reshape(-1, 784) / np.float32(255), file["labels"]


def of_site(path: str, site: int, sites: int) -> tuple[np.ndarray, np.ndarray]:
    """The digits of one site: half of all sites have mostly those below five, the others mostly the rest."""
    images, labels = load(path)
    images, labels = images[HELD_OUT:], labels[HELD_OUT:]
    low = np.arange(len(labels)) % 10 < (8 if site % 2 == 0 else 2)
    mine = np.flatnonzero((labels < 5) == low)[site // 2 :: (sites + 1) // 2]
    return images[mine], labels[mine]


def new_model() -> dict[str, np.ndarray]:
    return {"weight": np.zeros((784, 10), np.float32), "bias": np.zeros(10, np.float32)}


def train(model: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray, rate: float = 0.1) -> float:
    """Five epochs of gradient descent on batches of 10, in place; the mean loss."""
    losses = []
    for _ in range(5):
        for start in range(0, len(labels), 10):
            x, y = images[start : start + 10], labels[start : start + 10]
            error = _softmax(model, x)
            losses.append(float(-np.log(error[np.arange(len(y)), y] + 1e-9).mean()))
            error[np.arange(len(y)), y] -= 1
            model["weight"] -= rate * x.T @ error / len(y)
            model["bias"] -= rate * error.mean(axis=0)
    return float(np.mean(losses))


def accuracy(model: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray) -> float:
    return float((_softmax(model, images).argmax(axis=1) == labels).mean())


def _softmax(model: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    scores = x @ model["weight"] + model["bias"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)
