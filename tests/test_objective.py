"""What a fit costs: sums over rows that are partly elsewhere, the best intercept, dual values."""

import numpy as np
import pytest
import torch

from sklearn_convexbn.losses._base import LOSSES
from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.support._sharding import ALL_HERE, Shards
from tests.helpers import targets

KINDS = pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
CASES = pytest.mark.parametrize(("loss", "C"), [("squared", 2), ("logistic", 1), ("softmax", 3)])


class Twice(Shards):
    """Another process has the same rows once more."""

    def total(self, a):
        return 2.0 * a

    def totals(self, *arrays):
        return tuple(map(self.total, arrays))


def objective_and_fit(loss, C, kind, *, shards=ALL_HERE, fit_intercept=True):
    rng = np.random.default_rng(C)
    data = {"loss": LOSSES[loss], "alpha": 0.1, "fit_intercept": fit_intercept}
    Y, p, F = targets(rng, 30, loss, C), rng.dirichlet(np.ones(30)), rng.normal(size=(30, C))
    p = p if shards is ALL_HERE else 0.5 * p
    return Objective(Y=kind(Y), p=kind(p), shards=shards, **data), kind(F)


@KINDS
@CASES
def test_sums_are_completed_by_those_of_rows_elsewhere(loss, C, kind):
    whole, F = objective_and_fit(loss, C, kind)
    half, _ = objective_and_fit(loss, C, kind, shards=Twice())
    assert half.mean_loss(F) == pytest.approx(whole.mean_loss(F), rel=1e-13)
    b = whole.best_intercept(F)
    np.testing.assert_allclose(half.best_intercept(F), b, atol=1e-12)
    np.testing.assert_allclose(half.constant(), whole.constant(), atol=1e-12)
    Lambda = whole.dual_point(F + b)
    np.testing.assert_allclose(2.0 * half.dual_point(F + b), Lambda, atol=1e-15)
    for largest in (0.05, 0.7):
        value = whole.dual_value(Lambda, largest)
        assert half.dual_value(0.5 * Lambda, largest) == pytest.approx(value, rel=1e-12)


@KINDS
@CASES
def test_the_best_intercept_is_a_minimum_and_the_dual_value_below_it(loss, C, kind):
    objective, F = objective_and_fit(loss, C, kind)
    best = objective.best_intercept(F)
    value = objective.mean_loss(F + best)
    for step in 1e-3 * np.random.default_rng(0).normal(size=(20, C)):
        assert objective.mean_loss(F + best + kind(step)) >= value
    Lambda = objective.dual_point(F + best)
    np.testing.assert_allclose(Lambda.sum(0), 0.0, atol=1e-15)
    # Fenchel and Young: equality at the gradient, and b drops out; zero is a dual point too.
    expected = max(value + float((Lambda * F).sum()), 0.0)
    assert objective.dual_value(Lambda, 0.1) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@KINDS
def test_without_an_intercept_it_is_zero(kind):
    objective, F = objective_and_fit("logistic", 1, kind, fit_intercept=False)
    assert float(objective.best_intercept(F)[0]) == 0.0
    np.testing.assert_array_equal(objective.constant_fit(), 0.0 * F)
    np.testing.assert_array_equal(objective.dual_point(F), -objective.gradient(F))


def test_nobody_forgets_where_the_other_rows_are():
    with pytest.raises(TypeError, match="shards"):
        Objective(
            Y=np.zeros((1, 1)), p=np.ones(1), loss=LOSSES["squared"], alpha=1.0, fit_intercept=True
        )


def test_plain_newton_steps_that_run_away_give_way_to_safe_ones():
    """From far off an overshooting step halves the slope, and ends where there is no curvature."""
    Y, p = np.zeros((5, 1)), np.full(5, 0.2)
    Y[0] = 1.0
    objective = Objective(
        Y=Y, p=p, loss=LOSSES["logistic"], alpha=1.0, fit_intercept=True, shards=ALL_HERE
    )
    for far in (-300.0, -30.0, 30.0, 300.0, 1e5):
        b = objective.best_intercept(np.full((5, 1), far))
        assert far + float(b[0]) == pytest.approx(np.log(0.2 / 0.8), abs=1e-9 + 1e-14 * abs(far))
