r"""Batch normalization as whitening: the spectrum of the data and what is kept of it.

Centre X with row weights p (summing to one) and let :math:`X_c^T \mathrm{diag}(p) X_c = V
\Lambda V^T`. The network of one hidden BN layer on X is a plain two-layer network on the
rows of :math:`Z = [X_c V \Lambda^{-1/2}, 1]`, for which :math:`Z^T \mathrm{diag}(p) Z = I`
(Ergen et al., "Demystifying Batch Normalization in ReLU Networks", ICLR 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import numpy as np
from scipy import linalg


@dataclass(frozen=True)
class Whitening:
    """The whitening of one training set, as a map that applies to new rows too.

    Attributes
    ----------
    mean : ndarray of shape (d,)
        Weighted mean of X.
    components : ndarray of shape (d, k)
        Orthonormal principal directions V of X that are kept.
    scales : ndarray of shape (k,)
        Standard deviation each kept direction is divided by (after shrinkage).
    spectrum : ndarray of shape (k + 1,)
        Diagonal of Z^T diag(p) Z: ones, or below/above one where shrinkage damps or
        amplifies a direction; the last entry belongs to the column of ones.
    singular_values : ndarray of shape (r,)
        Singular values of the centred (weighted) X up to its rank, decreasing.
    explained_variance_ratio : ndarray of shape (r,)
    shrinkage : float
        The shrinkage used, in [0, 1].
    """

    mean: np.ndarray
    components: np.ndarray
    scales: np.ndarray
    spectrum: np.ndarray
    singular_values: np.ndarray
    explained_variance_ratio: np.ndarray
    shrinkage: float

    @property
    def n_components(self) -> int:
        """Number of directions kept."""
        return int(self.scales.shape[0])

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Map rows of X (n, d) to rows of Z (n, k + 1); the last column is ones."""
        Z = np.empty((X.shape[0], self.n_components + 1))
        np.divide((X - self.mean) @ self.components, self.scales, out=Z[:, :-1])
        Z[:, -1] = 1.0
        return Z

    def hidden_layer(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights (d, m) and biases (m,) with ``X @ W + b == Z(X) @ directions.T``."""
        W = self.components @ (directions[:, :-1] / self.scales).T
        return W, directions[:, -1] - self.mean @ W


def whiten(
    X: np.ndarray,
    weights: np.ndarray,
    *,
    n_components: int | float | None = None,
    shrinkage: float | str = 0.0,
) -> tuple[np.ndarray, Whitening]:
    """Whiten the rows of X, keeping the leading directions.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    weights : ndarray of shape (n,)
        Positive row weights.
    n_components : int, float or None
        Directions to keep: a number (at most the rank), a share of the variance in
        (0, 1), or all.
    shrinkage : float in [0, 1] or "auto"
        Whiten with ``(1 - s) C + s tr(C)/r I`` in place of the covariance C on its range.

    Returns
    -------
    Z : ndarray of shape (n, k + 1)
        ``[sqrt(n) U_k, 1]`` when rows weigh the same and nothing is shrunk.
    whitening : Whitening
    """
    total = float(weights.sum())
    p = weights / total
    mean = p @ X
    Xc = X - mean
    size = float(np.abs(Xc).max(initial=0.0)) or 1.0
    Xc /= size
    # Rounding in X - mean is relative to |X|, not to |X - mean|.
    noise = float(np.abs(X).max(initial=0.0)) / size
    s, V = _principal_directions(Xc * np.sqrt(p)[:, None], noise)
    variances = s**2
    ratio = variances / variances.sum() if s.size else variances
    k = _number_kept(n_components, ratio)
    d = _ledoit_wolf(Xc, p, variances, total) if shrinkage == "auto" else float(shrinkage)
    level = float(variances.mean()) if s.size else 0.0
    shrunk = (1.0 - d) * variances[:k] + d * level
    whitening = Whitening(
        mean=mean,
        components=V[:, :k],
        scales=np.sqrt(shrunk) * size,
        spectrum=np.append(variances[:k] / shrunk, 1.0),
        singular_values=s * size * np.sqrt(total),
        explained_variance_ratio=ratio,
        shrinkage=d,
    )
    return whitening.transform(X), whitening


def _principal_directions(A: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the singular values (r,) and right singular vectors (d, r) of A up to its rank.

    The smaller side is decomposed: LAPACK reduces A by a QR factorization first, so 200 x
    10000 costs as much as its 200 x 200 triangle. Directions at rounding level, relative to
    the largest one or to the data that were centred, are not part of the rank. Signs are
    fixed so that the largest entry of each vector is positive.
    """
    if min(A.shape) == 0:
        return np.zeros(0), np.zeros((A.shape[1], 0))
    wide = A.shape[0] < A.shape[1]
    left, s, right = linalg.svd(A.T if wide else A, full_matrices=False)
    V = left if wide else right.T
    tolerance = np.finfo(float).eps * max(A.shape) * max(float(s[0]), noise)
    rank = int(np.count_nonzero(s > tolerance))
    s, V = s[:rank], V[:, :rank]
    largest = V[np.abs(V).argmax(axis=0), np.arange(rank)]
    return s, V * np.where(largest < 0, -1.0, 1.0)


def _number_kept(n_components: int | float | None, ratio: np.ndarray) -> int:
    """Resolve `n_components` against the explained variance ratios (r,)."""
    rank = ratio.shape[0]
    if n_components is None:
        return rank
    if isinstance(n_components, Integral):
        return min(int(n_components), rank)
    # As in PCA: the smallest k whose directions explain more than this share.
    return min(int(np.searchsorted(np.cumsum(ratio), n_components, side="right")) + 1, rank)


def _ledoit_wolf(Xc: np.ndarray, p: np.ndarray, variances: np.ndarray, total: float) -> float:
    """Return the Ledoit-Wolf shrinkage on the range of the covariance.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices" (2004), with weighted moments; `total` counts the samples, so that a row of
    weight 2 is two samples. With full column rank and unit weights this equals
    :func:`sklearn.covariance.ledoit_wolf_shrinkage`.
    """
    r = variances.shape[0]
    if r == 0:
        return 0.0
    frobenius = float((variances**2).sum())
    distance = frobenius - r * float(variances.mean()) ** 2
    fourth = float(p @ (Xc**2).sum(axis=1) ** 2)
    error = (fourth - frobenius) / total
    if distance <= 0.0:
        return 1.0 if error > 0.0 else 0.0
    return float(min(max(error, 0.0), distance) / distance)
