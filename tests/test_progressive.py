"""Fits that begin on parts of many rows."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor
from sklearn_convexbn.fit import _progressive, _training
from sklearn_convexbn.fit._automatic_alpha import (
    FACTOR,
    HOLDOUT_RISE,
    MOST_OVERFIT,
    MOST_RAISES,
    PATIENCE,
    HoldoutRise,
    first_alpha,
)
from sklearn_convexbn.fit._progressive import (
    GROWTH,
    SMALLEST_HALF,
    SMALLEST_PART,
    part_sizes,
)
from sklearn_convexbn.program._problem import Neurons
from sklearn_convexbn.solvers import Result
from tests.helpers import problem_and_whitening

N = 2 * SMALLEST_PART


def data(n=N, noise=1.5, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 8))
    return X, np.maximum(X[:, 0], 0) - np.abs(X[:, 1]) + noise * rng.standard_normal(n)


def of_runs(monkeypatch):
    """Return a list that gets the number of rows, alpha and result of each run."""
    runs, solve = [], _training.solve

    def noted(prepared, settings, **arguments):
        trained = solve(prepared, settings, **arguments)
        runs.append((len(prepared.problem.Y), prepared.problem.alpha, trained.result))
        return trained

    monkeypatch.setattr(_progressive, "solve", noted)
    return runs


def test_parts_grow_by_a_factor_to_half_of_the_rows_and_are_not_small():
    assert part_sizes(2 * SMALLEST_HALF - 1) == []
    assert part_sizes(2 * SMALLEST_HALF) == [SMALLEST_HALF]
    assert part_sizes(N) == [SMALLEST_PART]
    assert part_sizes(N * GROWTH - 1) == [SMALLEST_PART * GROWTH - 1]
    assert part_sizes(N * GROWTH + 7) == [SMALLEST_PART, SMALLEST_PART * GROWTH + 3]


def test_rounds_on_parts_come_first_and_the_result_is_that_of_all_rows(monkeypatch):
    X, y = data()
    runs = of_runs(monkeypatch)
    model = ConvexBNRegressor(0.01, shrinkage=0.0, random_state=0).fit(X, y)
    assert [(rows, alpha) for rows, alpha, _ in runs] == [(SMALLEST_PART, 0.01), (N, 0.01)]
    assert len(runs[0][2].neurons) > 0
    assert model.n_iter_ == runs[1][2].n_iter
    assert model.dual_gap_ <= model.tol
    assert model.certificate_.n_verified > 0
    fit = model.predict(X) - y
    decay = sum(np.sum(np.square(model.batch_norm_[key])) for key in ("scale", "shift"))
    decay += (model.coefs_[1] ** 2).sum()
    objective = 0.5 * np.mean(fit**2) + 0.5 * model.weight_decay_ * decay
    assert model.objective_ == pytest.approx(objective, rel=1e-9)


def test_the_optimum_is_that_of_a_fit_without_parts(monkeypatch):
    X, y = data()
    model = ConvexBNRegressor(0.03, tol=0.01, random_state=0).fit(X, y)
    monkeypatch.setattr(_progressive, "part_sizes", lambda n_rows: [])
    whole = ConvexBNRegressor(0.03, tol=0.01, random_state=0).fit(X, y)
    assert model.objective_ == pytest.approx(whole.objective_, rel=0.01)


@pytest.mark.parametrize("kind", ["regression", "two classes", "three classes"])
def test_noise_on_the_rows_behind_a_part_raises_alpha(monkeypatch, kind):
    X, y = data()
    runs = of_runs(monkeypatch)
    if kind == "regression":
        model = ConvexBNRegressor(random_state=0)
    else:
        y = np.digitize(y, [0.0] if kind == "two classes" else [-1.0, 1.0])
        model = ConvexBNClassifier(random_state=0)
    model.fit(X, y)
    alphas = [alpha for _, alpha, _ in runs]
    raises = len(runs) - 2
    assert raises >= 1
    assert alphas[:-1] == [first_alpha(N) * FACTOR**i for i in range(raises + 1)]
    assert alphas[-1] == alphas[-2] == model.alpha_
    assert [rows for rows, _, _ in runs] == [SMALLEST_PART] * (raises + 1) + [N]


def test_clean_targets_keep_the_first_alpha():
    X, y = data(noise=0.0)
    model = ConvexBNRegressor(random_state=0).fit(X, y)
    assert model.alpha_ == first_alpha(N)
    assert model.score(*data(noise=0.0, seed=1)) > 0.99


def test_a_raised_alpha_predicts_better():
    X, y = data()
    X_new, f = data(noise=0.0, seed=1)
    model = ConvexBNRegressor(random_state=0).fit(X, y)
    with pytest.warns(ConvergenceWarning):  # it takes longer
        first = ConvexBNRegressor(first_alpha(N), random_state=0, max_iter=12).fit(X, y)
    assert np.mean((model.predict(X_new) - f) ** 2) < 0.5 * np.mean((first.predict(X_new) - f) ** 2)


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_wrong_labels_raise_alpha_although_the_first_network_fits_them(monkeypatch, share):
    rng = np.random.default_rng(0)
    X, flipped = rng.standard_normal((5000, 40)), rng.random(5000) < share
    y = (X[:, 0] + X[:, 1] > 0) ^ flipped
    runs = of_runs(monkeypatch)
    model = ConvexBNClassifier(random_state=0).fit(X[:N], y[:N])
    assert next(alpha for _, alpha, _ in runs) == first_alpha(N)
    assert model.alpha_ == pytest.approx(first_alpha(N) * FACTOR**MOST_RAISES)
    small = ConvexBNClassifier(first_alpha(N), random_state=0).fit(X[:N], y[:N])
    gain = model.score(X[N:], y[N:]) - small.score(X[N:], y[N:])
    assert gain > 0.05


def test_a_given_alpha_ends_a_part_once_it_fits_noise(monkeypatch):
    X, y = data()
    runs = of_runs(monkeypatch)
    with pytest.warns(ConvergenceWarning):
        ConvexBNRegressor(first_alpha(N), random_state=0, max_iter=8).fit(X, y)
    assert [rows for rows, _, _ in runs] == [SMALLEST_PART, N]
    assert not runs[0][2].converged
    assert runs[0][2].n_iter < 4


def test_between_parts_alpha_is_lowered_and_before_all_rows_it_is_not(monkeypatch):
    monkeypatch.setattr(_progressive, "SMALLEST_PART", 250)
    assert part_sizes(N) == [250, 1000]
    rises = []

    class Noted(HoldoutRise):
        def __init__(self, problem, others):
            super().__init__(problem, others)
            rises.append(self)

    monkeypatch.setattr(_progressive, "HoldoutRise", Noted)
    X, y = data()
    runs = of_runs(monkeypatch)
    ConvexBNRegressor(random_state=0).fit(X, y)
    of_size = {size: [a for rows, a, _ in runs if rows == size] for size in (250, 1000, N)}

    def kept(size):
        """Return the alpha whose networks were best on other rows."""
        tried = [rise for rise in rises if len(rise.problem.Y) == size]
        assert [rise.problem.alpha for rise in tried] == of_size[size]
        return min(tried, key=lambda rise: rise.least).problem.alpha

    assert len(of_size[250]) > 1
    assert of_size[1000][0] == max(kept(250) / FACTOR, first_alpha(N))
    assert of_size[N] == [kept(1000)]


def test_rows_in_another_order_give_the_same_network():
    X, y = data()
    order = np.random.default_rng(0).permutation(N)
    one = ConvexBNRegressor(random_state=0).fit(X, y)
    other = ConvexBNRegressor(random_state=0).fit(X[order], y[order])
    assert other.alpha_ == one.alpha_
    assert other.predict(X) == pytest.approx(one.predict(X), abs=1e-6)


def test_a_weight_of_two_is_the_row_twice():
    X, y = data(N + 100)
    weights = np.where(np.arange(len(X)) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(len(X)), weights.astype(int))
    weighted = ConvexBNRegressor(random_state=0).fit(X, y, sample_weight=weights)
    repeated = ConvexBNRegressor(random_state=0).fit(X[twice], y[twice])
    assert weighted.alpha_ == repeated.alpha_
    assert weighted.predict(X) == pytest.approx(repeated.predict(X), abs=1e-6)


def test_rows_that_are_computed_when_read_have_parts_too(monkeypatch):
    X, y = data()
    stored = ConvexBNRegressor(random_state=0).fit(X, y)
    monkeypatch.setattr(_training, "are_stored", lambda *args, **kwargs: False)
    runs = of_runs(monkeypatch)
    computed = ConvexBNRegressor(random_state=0).fit(X, y)
    assert isinstance(runs[-1][2], Result)
    assert len(runs) >= 3
    assert computed.alpha_ == stored.alpha_
    assert computed.objective_ == pytest.approx(stored.objective_, rel=0.05)


def test_warm_starts_and_other_solvers_have_no_parts(monkeypatch):
    X, y = data(noise=0.3)
    model = ConvexBNRegressor(0.02, random_state=0, warm_start=True).fit(X, y)
    runs = of_runs(monkeypatch)
    model.fit(X, y)
    assert [rows for rows, _, _ in runs] == [N]
    runs.clear()
    ConvexBNRegressor(0.02, activation="gated_relu", n_gates=8, random_state=0).fit(X, y)
    assert [rows for rows, _, _ in runs] == [N]


def test_max_iter_and_verbose_count_rounds_on_parts(capsys):
    X, y = data(noise=0.1)
    for rounds, on_part in ((1, 0), (3, 0), (4, 2), (5, 2)):  # a first round has no neurons
        model = ConvexBNRegressor(0.001, random_state=0, max_iter=rounds, verbose=1, tol=1e-3)
        with pytest.warns(ConvergenceWarning, match="Stopped after"):
            model.fit(X, y)
        lines = capsys.readouterr().out.splitlines()
        assert sum("round" in line for line in lines) == rounds
        assert lines[0].startswith(f"On {SMALLEST_PART} of {N} rows:") == (on_part > 0)
        assert model.n_iter_ == rounds - on_part


def test_times_count_from_the_first_round_on_a_part(monkeypatch):
    X, y = data(noise=0.1)
    times = iter(np.arange(1000.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    model = ConvexBNRegressor(0.01, random_state=0).fit(X, y)
    assert model.history_["time"][0] > 2.0


def test_the_rows_behind_a_part_are_judged_by_their_loss():
    X, y = data(300)
    problem, _ = problem_and_whitening(X, y, "squared", 0.01)
    rise = HoldoutRise(problem.part(slice(200)), problem.part(slice(200, 300)))
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 9))
    neurons = Neurons(q / np.linalg.norm(q), np.array([[0.3]]), np.array([0.1]))
    F = np.maximum(problem.Z[200:] @ neurons.directions[0], 0) * 0.3 + 0.1
    certificate = problem.certificate(neurons, largest_correlation=1.0)[1]
    result = Result.of(problem, (neurons, certificate), [(0, 0, 0, 0, "")], False)
    loss = 0.5 * np.mean((F - y[200:]) ** 2)
    assert rise.error(result) == pytest.approx(loss, rel=1e-12)

    errors = iter([1.0, 1.0 + 0.9 * HOLDOUT_RISE, 0.9, 0.9 * (1 + 1.1 * HOLDOUT_RISE), *[0.8] * 4])
    rise.error = lambda result: next(errors)
    assert PATIENCE == 3
    assert [rise(result) for _ in range(8)] == [False] * 3 + [True] + [False] * 3 + [True]
    assert rise.least == 0.8
    assert rise.best is neurons


def test_a_larger_alpha_is_tried_where_the_first_network_fits_noise_and_while_it_helps():
    X, y = data(300)
    problem, _ = problem_and_whitening(X, y, "squared", 0.01)
    rise = HoldoutRise(problem.part(slice(200)), problem.part(slice(200, 300)))
    q = np.random.default_rng(0).standard_normal((1, 9))
    some = Neurons(q / np.linalg.norm(q), np.array([[0.3]]), np.array([0.1]))
    none = Neurons(some.directions[:0], some.weights[:0], some.intercept)

    def result(neurons):
        found = problem.certificate(neurons, largest_correlation=1.0)  # with the optimal intercept
        return Result.of(problem, found, [(0, 0, 0, 0, "")], False)

    assert not rise(result(none))  # it is that of every alpha, and no best one
    assert rise.least == np.inf
    assert not rise.overfits(result(none))

    error = np.maximum(problem.Z @ some.directions[0], 0) * 0.3 - y
    loss = 0.5 * np.var(error)
    for factor, clearly in ((0.99, False), (1.01, True)):
        rise.least = factor * MOST_OVERFIT * loss
        assert rise.overfits(result(some)) == clearly
    for factor, clearly in ((1.01, False), (0.99, True)):
        rise.least = factor * (1.0 - HOLDOUT_RISE) * 0.7
        assert rise.is_clearly_below(0.7) == clearly


def test_part_of_a_problem_is_the_problem_on_these_rows():
    X, y = data(300)
    weights = np.random.default_rng(0).integers(1, 4, 300).astype(float)
    problem, _ = problem_and_whitening(X, y, "squared", 0.01, weights=weights)
    part = problem.part(slice(50, 150))
    assert part.p.sum() == pytest.approx(1.0)
    assert part.p == pytest.approx(weights[50:150] / weights[50:150].sum())
    np.testing.assert_array_equal(part.Z, problem.Z[50:150])
    np.testing.assert_array_equal(part.Y, problem.Y[50:150])
    assert part.units.n_samples == 100
