"""Branch and bound over cones proves bounds that hold, and closes them."""

import numpy as np
import pytest
from sklearn.datasets import load_iris

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor
from sklearn_convexbn.search import _bound
from sklearn_convexbn.search._bound import AFFORDABLE_OPERATIONS, bounded_by_cones, proven
from sklearn_convexbn.search._exact import exact_search_operations, largest_correlation
from sklearn_convexbn.search._proof import prove
from tests.helpers import make_problem

KINDS = ["general", "grid", "ties", "zeros", "parallel", "rank", "zero multipliers", "few"]


def _data(kind, n, k, seed):
    rng = np.random.default_rng(seed)
    Z, multipliers = rng.normal(size=(n, k)), rng.normal(size=n)
    if kind == "grid":
        Z, multipliers = rng.integers(-2, 3, size=(n, k)) * 1.0, rng.integers(-2, 3, size=n) * 1.0
    elif kind == "ties":
        Z = np.hstack([rng.integers(-1, 2, size=(n, k - 1)), np.ones((n, 1))])
        multipliers -= multipliers.mean()
    elif kind == "zeros":
        Z[: n // 3] = 0.0
    elif kind == "parallel":
        Z[n // 2 :] = -2.0 * Z[: n - n // 2]
        Z[1::2] = Z[::2][: len(Z[1::2])]
    elif kind == "rank":
        Z[:, 0] = Z[:, 1:].sum(axis=1)
    elif kind == "zero multipliers":
        multipliers[: n // 2] = 0.0
    elif kind == "few":
        Z, multipliers = Z[: max(1, k - 2)], multipliers[: max(1, k - 2)]
    return Z, multipliers


def _values(Z, multipliers, directions):
    return np.abs(multipliers @ np.maximum(Z @ directions, 0.0))


def _checked(Z, multipliers, **arguments):
    """Return a proof whose directions have its values, none above the bound."""
    proof = prove(Z, multipliers, **arguments)
    norms = np.linalg.norm(proof.directions, axis=0)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-12)
    values = _values(Z, multipliers, proof.directions)
    np.testing.assert_allclose(proof.values, values, rtol=1e-9, atol=_rounding(Z, multipliers))
    assert (proof.values <= proof.bound).all()
    return proof


def _rounding(Z, multipliers):
    """Return what a bound may be too large by, whatever it is relative to the maximum."""
    return 1e-11 * float(np.abs(multipliers) @ np.linalg.norm(Z, axis=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(6, 1), (6, 2), (30, 2), (7, 3), (25, 3), (14, 4), (9, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_bound_is_the_maximum_over_all_arrangements(kind, n, k, seed):
    Z, multipliers = _data(kind, n, k, seed)
    expected = largest_correlation(Z, multipliers[:, None])[0]
    proof = _checked(Z, multipliers, closeness=1e-6)
    # The enumeration is exact to a part in 1e10.
    assert expected * (1 - 1e-10) <= proof.bound
    assert proof.bound <= expected * (1 + 1e-6) * (1 + 1e-10) + _rounding(Z, multipliers)


@pytest.mark.parametrize("closeness", [0.5, 0.1, 1e-2, 1e-9])
@pytest.mark.parametrize("seed", range(4))
def test_bound_is_as_close_as_it_is_wanted(closeness, seed):
    Z, multipliers = _data("general", 20, 3, seed)
    expected = largest_correlation(Z, multipliers[:, None])[0]
    proof = _checked(Z, multipliers, closeness=closeness)
    assert expected <= proof.bound * (1 + 1e-12)
    assert proof.bound <= (1 + closeness) * proof.values.max() + _rounding(Z, multipliers)
    wanted = _checked(Z, multipliers, closeness=0.0, wanted=expected * (1 + closeness))
    assert expected <= wanted.bound * (1 + 1e-12) <= expected * (1 + closeness) * (1 + 3e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(60, 2), (60, 3), (25, 4), (11, 5)])
def test_bound_holds_after_any_number_of_evaluations(kind, n, k):
    Z, multipliers = _data(kind, n, k, 0)
    expected = largest_correlation(Z, multipliers[:, None])[0]
    last = np.inf
    for n_evaluations in (1, 10, 100, 1000, 10_000):
        proof = _checked(Z, multipliers, n_evaluations=n_evaluations)
        assert expected * (1 - 1e-10) <= proof.bound <= last * (1 + 1e-12)
        last = proof.bound


@pytest.mark.parametrize("scale", [1e-150, 1e-80, 1e80, 1e150])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_bound_has_the_scale_of_rows_and_multipliers(scale, k):
    Z, multipliers = _data("general", 15, k, 0)
    expected = prove(Z, multipliers)
    for rows, weights in ((scale, 1.0), (1.0, scale), (scale, 1.0 / scale)):
        proof = prove(rows * Z, weights * multipliers, n_evaluations=100_000)
        assert proof.bound == pytest.approx(expected.bound * (rows * weights), rel=1e-8)
    # Rows of all sizes at once: only the product of a row and its multiplier counts.
    scales = np.geomspace(1.0 / scale, scale, 15)
    proof = prove(scales[:, None] * Z, multipliers / scales)
    assert proof.bound == pytest.approx(expected.bound, rel=1e-8)


def test_bound_does_not_rest_on_rounding():
    # Multipliers of sizes that differ much, large sums that cancel.
    for seed in range(5):
        Z, multipliers = _data("general", 30, 3, seed)
        Z, multipliers = np.vstack([Z, Z]), np.append(1e6 + multipliers, np.full(30, -1e6))
        expected = largest_correlation(Z, multipliers[:, None])[0]
        assert prove(Z, multipliers, closeness=1e-4).bound >= expected * (1 - 1e-9)


def test_nothing_to_prove():
    for Z in (np.zeros((4, 3)), np.zeros((0, 3)), np.random.default_rng(0).normal(size=(4, 3))):
        proof = prove(Z, np.zeros(len(Z)))
        assert (proof.bound, proof.n_evaluations, proof.directions.shape) == (0.0, 0, (3, 0))
    # Equal rows whose multipliers cancel.
    Z = np.repeat(np.random.default_rng(0).normal(size=(3, 3)), 2, axis=0)
    assert prove(Z, np.tile([1.0, -1.0], 3)).bound == 0.0


def test_known_maxima():
    assert _checked(np.array([[3.0, 4.0]]), np.array([-2.0])).bound == pytest.approx(10.0)
    assert _checked(np.eye(4), np.ones(4)).bound == pytest.approx(2.0)
    opposite = np.array([[3.0, 4.0], [-3.0, -4.0]])
    assert _checked(opposite, np.ones(2)).bound == pytest.approx(5.0)
    assert _checked(np.ones((3, 1)), np.array([1.0, -4.0, 1.0])).bound == pytest.approx(2.0)
    assert _checked(np.eye(3), np.array([1.0, -2.0, 0.5])).bound == pytest.approx(2.0)


def test_proof_is_the_same_again_and_better_with_a_known_maximum():
    Z, multipliers = _data("general", 60, 4, 0)
    first = _checked(Z, multipliers, closeness=1e-3)
    again = _checked(Z, multipliers, closeness=1e-3)
    assert (first.bound, first.n_evaluations) == (again.bound, again.n_evaluations)
    np.testing.assert_array_equal(first.directions, again.directions)
    known = first.directions[:, :1]
    informed = _checked(Z, multipliers, closeness=1e-3, known=known)
    assert informed.n_evaluations <= first.n_evaluations
    assert informed.values.max() >= first.values.max() * (1 - 1e-12)


def _iris():
    X, y = load_iris(return_X_y=True)
    return X, (y == 1).astype(int)


def test_fit_in_few_dimensions_is_proven():
    X, y = _iris()
    model = ConvexBNClassifier(alpha=0.03, tol=0.01, shrinkage=0.0, random_state=0).fit(X, y)
    certificate = model.certificate_
    problem_size = len(X), X.shape[1] + 1, 1
    assert exact_search_operations(*problem_size) > AFFORDABLE_OPERATIONS
    assert certificate.kind == "exact"
    assert 0.0 <= certificate.gap <= 0.01
    closer = ConvexBNClassifier(alpha=0.03, tol=1e-4, shrinkage=0.0, random_state=0).fit(X, y)
    assert certificate.dual <= closer.certificate_.primal


def test_fit_in_many_dimensions_is_estimated(diabetes):
    X, y = diabetes
    model = ConvexBNRegressor(alpha=0.1, tol=0.01, random_state=0).fit(X, y)
    assert model.certificate_.kind == "estimated"


def test_fit_gives_a_hopeless_proof_up_soon(monkeypatch, diabetes):
    budgets, bounded = [], _bound.bounded_by_cones

    def recorded(*args, **kwargs):
        budgets.append(kwargs["n_evaluations"])
        return bounded(*args, **kwargs)

    monkeypatch.setattr(_bound, "bounded_by_cones", recorded)
    hopeless = ConvexBNRegressor(0.003, n_components=6, tol=0.2, random_state=0)
    assert hopeless.fit(*diabetes).certificate_.kind == "estimated"
    assert set(budgets) == {_bound.HOPELESS_EVALUATIONS}
    budgets.clear()
    X, y = _iris()
    hopeful = ConvexBNClassifier(0.03, tol=0.01, shrinkage=0.0, random_state=0).fit(X, y)
    assert hopeful.certificate_.kind == "exact"
    assert budgets[-2:] == [_bound.HOPELESS_EVALUATIONS, _bound.quick_evaluations(len(X))]


def test_bound_that_is_not_wanted_is_no_proof():
    rng = np.random.default_rng(0)
    problem = make_problem(rng.normal(size=(300, 5)), rng.normal(size=300), "squared", 0.01)
    Lambda = problem.dual_point(np.tile(problem.constant(), (300, 1)))
    none = np.zeros((problem.Z.shape[1], 0))
    cones = bounded_by_cones(problem, Lambda, known=none, n_evaluations=1)
    assert cones.proven
    assert cones.bound > cones.values.max()
    assert not proven(problem, Lambda, wanted=0.1 * cones.values.max(), n_evaluations=1).proven
    assert proven(problem, Lambda, wanted=cones.bound * (1 + 1e-6), n_evaluations=1).proven
    two = make_problem(rng.normal(size=(300, 5)), rng.normal(size=(300, 2)), "squared", 0.01)
    assert not bounded_by_cones(two, two.Y, known=none, n_evaluations=1).proven
