"""The last layers of a torch network, replaced by a network trained in convex form."""

from __future__ import annotations

import copy
from typing import Any

from sklearn.base import clone

from sklearn_convexbn.data._validation import check_numbers
from sklearn_convexbn.estimators._base import BaseConvexBN, check_own
from sklearn_convexbn.support._arrays import as_numpy, is_tensor, on_cpu, writable
from sklearn_convexbn.support._device import plain_torch
from sklearn_convexbn.support._sharding import current_shards

#: Rows that pass through a feature module together.
BATCH_ROWS = 256


@plain_torch()
def replace_head(
    features: Any, X: Any, y: Any, *, estimator: BaseConvexBN, sample_weight: Any = None
) -> tuple[Any, BaseConvexBN]:
    """Put a head trained in convex form on the features that a torch module computes.

    The features of all rows are computed once, in eval mode and without gradients, and a clone
    of `estimator` is fitted to them: with the features as they are, its certificate bounds what
    any other head of its kind could gain on the training objective.

    Parameters
    ----------
    features : torch.nn.Module
        Maps a batch of rows of X to features of shape (batch, n_features). It is copied, not
        modified: the module keeps its mode, and the network returned has weights of its own.
    X : array-like or torch.Tensor of shape (n_samples, ...)
        What `features` takes, such as images. Floating-point numbers are cast to the dtype of the
        module's parameters and batches moved to their device; other numbers keep their dtype.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Target, as `estimator` takes it.
    estimator : estimator of this package
        A :class:`ConvexBNClassifier`, :class:`ConvexBNRegressor` or a cross-validated form of
        these, with ``activation="relu"``. It is cloned.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative; weighs rows in the fit.

    Returns
    -------
    network : torch.nn.Sequential
        (features, Linear, BatchNorm1d, ReLU, Linear) in eval mode, in the dtype and on the device
        of the features; with ``clip=True`` (Linear, Hardtanh) follow the features. Its outputs
        (n_samples, n_outputs) are those of `head`, up to rounding in that dtype: predictions, or
        for a classifier the values of its decision function.
    head : estimator of this package
        The fitted clone of `estimator`, whose X are the features, with its certificate.

    Raises
    ------
    TypeError
        If `features` is no torch module or returns no tensor, or `estimator` is none of this
        package.
    ValueError
        For ``activation="gated_relu"``, an estimator with `patches`, features that are not
        of shape (batch, n_features), X without rows, or data that the fit refuses.

    See Also
    --------
    ConvexBNTransformer : Stacks networks of this package in a pipeline.
    certify : The gap of the head that is replaced.

    Notes
    -----
    Under :func:`row_shards` each process computes the features of its own rows, and the fit is
    over the rows of all.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_wine
    >>> from sklearn_convexbn import ConvexBNClassifier, replace_head
    >>> X, y = load_wine(return_X_y=True)
    >>> X = (X - X.mean(axis=0)) / X.std(axis=0)
    >>> features = torch.nn.Sequential(torch.nn.Linear(13, 5), torch.nn.Tanh()).double()
    >>> network, head = replace_head(
    ...     features, X, y, estimator=ConvexBNClassifier(alpha=0.1, random_state=0)
    ... )
    >>> network(torch.as_tensor(X)).shape
    torch.Size([178, 3])
    """
    import torch

    with current_shards().raised_together():
        if not isinstance(features, torch.nn.Module):
            raise TypeError(f"features must be a torch.nn.Module. Got {features!r}.")
        check_own(estimator, "replace_head")
        if estimator.activation != "relu":
            raise ValueError(
                "replace_head needs an estimator with activation='relu', which torch's layers "
                f"can express. Got activation={estimator.activation!r}."
            )
        if estimator.patches is not None:
            raise ValueError(
                "replace_head needs an estimator of flat features, so patches=None. Got patches="
                f"{estimator.patches!r}."
            )
        head = clone(estimator)
        body = copy.deepcopy(features).eval()
        values = _features(body, X)
    head.fit(as_numpy(values.double()), on_cpu(y), sample_weight=on_cpu(sample_weight))
    layers = head.to_torch().to(device=values.device, dtype=values.dtype)
    return torch.nn.Sequential(body, *layers).eval(), head


def _features(body: Any, X: Any) -> Any:
    """Return the features (n, d) of all rows of X, a tensor where the module's weights are."""
    import torch

    X = X if is_tensor(X) else torch.as_tensor(writable(check_numbers(X, "X")))
    if X.ndim == 0 or len(X) == 0:
        raise ValueError(f"replace_head needs at least one row. X has shape {tuple(X.shape)}.")
    where = _dtype_and_device(body, X)
    with torch.no_grad():
        parts = [_of_batch(body, batch.to(**where)) for batch in X.split(BATCH_ROWS)]
    features = torch.cat(parts)
    bad = int((~torch.isfinite(features).all(dim=1)).sum())
    if bad:
        of = "" if torch.isfinite(X).all() else "; X contains NaN or infinity itself"
        raise ValueError(f"features returns NaN or infinity for {bad} of {len(X)} rows{of}.")
    return features


def _dtype_and_device(body: Any, X: Any) -> dict[str, Any]:
    """Return the dtype and device that a module wants X in: those of its first weights."""
    weight = next((p for p in body.parameters() if p.is_floating_point()), X)
    dtype = weight.dtype if X.is_floating_point() else X.dtype
    return {"dtype": dtype, "device": weight.device}


def _of_batch(body: Any, batch: Any) -> Any:
    """Return the features (batch, d) of one batch."""
    import torch

    out = body(batch)
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"features must return a tensor. Got {type(out).__name__}.")
    if out.ndim != 2 or len(out) != len(batch):
        raise ValueError(
            f"features must return a tensor of shape (batch, n_features) for a batch of "
            f"{len(batch)} rows. Got shape {tuple(out.shape)}: end it with torch.nn.Flatten()?"
        )
    return out if out.is_floating_point() else out.to(torch.get_default_dtype())
