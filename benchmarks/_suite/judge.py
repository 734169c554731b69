"""A second judge of estimated gaps: a plain ascent from many starts, none of it the package's.

Half of the starts are normal directions, half are random points where the hyperplanes of up to 16
random rows meet. All of them follow the normalised gradient of ``|Lambda^T (Z q)_+|`` with steps
that shrink geometrically, and the best hundred once more with smaller ones.
"""

from collections.abc import Iterator

from _suite.data import Array
from _suite.objectives import whiten

import numpy as np
from scipy.special import entr, expit, softmax

TOGETHER, STEPS, BEST = 1000, 30, 100
IN_CACHE, LEAST_STARTS = 64_000, 64  # products of rows and starts at once, and starts


def starts(Z: Array, count: int, rng: np.random.Generator) -> Iterator[tuple[Array, float]]:
    """Yield starts (k, S) and the length of their first step."""
    n, k = Z.shape
    meet = min(k - 1, 16)
    for i in range(0, count, TOGETHER):
        q = rng.standard_normal((k, TOGETHER))
        if i // TOGETHER % 2 == 0:
            yield q, 0.5
            continue
        rows = Z[rng.integers(n, size=(TOGETHER, meet))]
        basis = np.linalg.qr(rows.transpose(0, 2, 1))[0]
        inner = np.einsum("skr,ks->sr", basis, q)
        yield q - np.einsum("skr,sr->ks", basis, inner), 0.1


def climb(Z: Array, Lambda: Array, q: Array, first: float, last: float) -> tuple[Array, Array]:
    """Return the best values (S,) on the way up from q (k, S), and where they were."""
    count = max(LEAST_STARTS, IN_CACHE // len(Z))  # that ascend together
    parts = [q[:, i : i + count] for i in range(0, q.shape[1], count)]
    ends = [_climb_together(Z, Lambda, part, first, last) for part in parts]
    values, where = zip(*ends, strict=True)
    return np.concatenate(values), np.hstack(where)


def _climb_together(
    Z: Array, Lambda: Array, q: Array, first: float, last: float
) -> tuple[Array, Array]:
    q = q / np.linalg.norm(q, axis=0)
    best, where = np.zeros(q.shape[1], q.dtype), q
    slopes = (Lambda * Z).T.copy() if Lambda.shape[1] == 1 else None
    active = np.empty((len(Z), q.shape[1]), q.dtype)
    for step in np.geomspace(first, last, STEPS).astype(q.dtype):
        H = Z @ q
        np.greater(H, 0, out=active)
        if slopes is None:
            H *= active
            T = Lambda.T @ H
            values = np.linalg.norm(T, axis=0)
            T = Lambda @ (T / np.maximum(values, 1e-30))
            T *= active
            gradient = Z.T @ T
        else:
            gradient = slopes @ active
            T = (q * gradient).sum(axis=0)
            values, gradient = np.abs(T), gradient * np.sign(T)
        better = values > best
        best, where = np.where(better, values, best), np.where(better, q, where)
        q = q + step * gradient / np.maximum(np.linalg.norm(gradient, axis=0), 1e-30)
        q /= np.linalg.norm(q, axis=0)
    return best, where


def largest_correlation(Z: Array, Lambda: Array, n_starts: int, seed: int) -> float:
    """Return the largest ``|Lambda^T (Z q)_+|`` over unit q that is met."""
    scale = np.abs(Lambda).max()
    single = Z.astype(np.float32), (Lambda / scale).astype(np.float32)
    found = [
        climb(*single, q.astype(np.float32), first, 0.005)
        for q, first in starts(Z, n_starts, np.random.default_rng(seed))
    ]
    values, where = (np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
    q = where[:, np.argsort(-values)[:BEST]].astype(np.float64)
    return float(climb(Z, Lambda, q, 0.01, 1e-5)[0].max())


def judged_gap(
    loss: str, X: Array, y: Array, outputs: Array, alpha: float, primal: float, *, n_starts: int
) -> float:
    """Return the relative gap of a network, of its outputs and its objective, on unweighted rows.

    Parameters
    ----------
    loss : {"squared", "logistic", "softmax"}
    X : array of shape (n K, d)
        K patches of each sample, of which units take the mean; mostly K is one.
    y : array of shape (n,) or (n, C)
        Numbers, or codes of classes.
    outputs : array of shape (n,) or (n, C)
        Numbers, or logits.
    alpha, primal : float
    n_starts : int
    """
    n = len(y)
    F = outputs.reshape(n, -1)
    Y = np.eye(F.shape[1])[y] if loss == "softmax" else y.reshape(F.shape).astype(np.float64)
    predicted = {"squared": lambda: F, "logistic": lambda: expit(F)}
    residual = Y - predicted.get(loss, lambda: softmax(F, axis=1))()
    residual -= residual.mean(axis=0)
    Lambda = np.repeat(residual / len(X), len(X) // n, axis=0)
    largest = largest_correlation(whiten(X)[0], Lambda, n_starts, 1)
    residual *= min(1.0, alpha / largest)
    if loss == "squared":
        dual = float((residual * Y - residual**2 / 2).sum() / n)
    else:
        P = np.clip(Y - residual, 0.0, 1.0)
        dual = float((entr(P) + (entr(1 - P) if loss == "logistic" else 0.0)).sum() / n)
    return (primal - dual) / primal
