"""Pursuit: search, refit, slide, and the whole against independent values."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_iris, load_wine, make_classification
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor
from sklearn_convexbn.data._whitening import Whitening
from sklearn_convexbn.program._problem import Neurons
from sklearn_convexbn.program.units._vertices import circle_maxima, fresh_starts, vertices
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.search import _verification
from sklearn_convexbn.search._search import Effort, Search, ascend, distinct_violators
from sklearn_convexbn.solvers import RunSettings, run
from sklearn_convexbn.solvers._pursuit import (
    Pursuit,
    _TorchProblem,
    merge_equal_units,
    refit,
    slide,
)
from sklearn_convexbn.solvers._round_search import RoundSearch
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import hidden, make_problem, random_neurons, shared_data, solve


@pytest.fixture(scope="module", params=["squared", "softmax", "logistic"])
def problem(request):
    loss = request.param
    X, y = load_wine(return_X_y=True)
    Y = {"squared": X[:, :1], "softmax": np.eye(3)[y], "logistic": (y[:, None] == 1) * 1.0}[loss]
    if loss == "squared":
        Y = (Y - Y.mean()) / Y.std()
    return make_problem(X[:, 1:6], Y, loss, 0.02)


def layer_of(Z):
    return WhitenedUnits(torch.as_tensor(Z), ALL_HERE)


def test_ascent_never_loses_to_its_starts_and_stays_on_the_sphere():
    rng = np.random.default_rng(0)
    Z, L, starts = (torch.as_tensor(rng.standard_normal(s)) for s in ((30, 4), (30, 2), (4, 50)))
    unit = starts / torch.linalg.vector_norm(starts, dim=0)
    layer = WhitenedUnits(Z, ALL_HERE)
    values, Q = ascend(layer, L, starts, n_steps=20)
    assert (values >= layer.correlations(L, unit).norm(dim=0) - 1e-12).all()
    assert torch.allclose(values, layer.correlations(L, Q).norm(dim=0))
    assert torch.allclose(torch.linalg.vector_norm(Q, dim=0), torch.ones(50).double())


def test_ascent_finds_the_maximum_in_the_plane():
    rng = np.random.default_rng(1)
    Z, L = rng.standard_normal((12, 2)), rng.standard_normal((12, 1))
    angles = np.linspace(0, 2 * np.pi, 20001)
    grid = np.vstack([np.cos(angles), np.sin(angles)])
    best = np.abs(L.T @ np.maximum(Z @ grid, 0)).max()
    starts = torch.as_tensor(rng.standard_normal((2, 40)))
    values, _ = ascend(layer_of(Z), torch.as_tensor(L), starts, n_steps=60)
    assert float(values.max()) == pytest.approx(best, rel=1e-4)


def test_distinct_violators_are_sorted_above_the_threshold_and_apart():
    rng = np.random.default_rng(0)
    Q = rng.standard_normal((3, 200))
    Q /= np.linalg.norm(Q, axis=0)
    values = rng.uniform(size=200)
    chosen = distinct_violators(values, Q, 0.3, most=12, cosine=0.9)
    assert len(chosen) == 12
    assert (np.diff(values[chosen]) <= 0).all()
    assert values[chosen].min() > 0.3
    assert (Q[:, chosen].T @ Q[:, chosen] - np.eye(12)).max() <= 0.9
    assert len(distinct_violators(values, Q, 2.0, most=12, cosine=0.9)) == 0


def test_moved_hyperplanes_pass_through_a_row():
    rng = np.random.default_rng(0)
    Z = np.c_[rng.standard_normal((20, 3)), np.ones(20)]
    q = rng.standard_normal((4, 9))
    starts, _ = fresh_starts(layer_of(Z), 18, lambda count: q[:, :count], np.random.RandomState(0))
    moved = starts[:, :9]
    assert np.abs(Z @ moved).min(axis=0)[::2].max() < 1e-12
    np.testing.assert_array_equal(moved[:, 1::2], q[:, 1::2])


def test_vertices_are_orthogonal_to_their_rows():
    rng = np.random.default_rng(0)
    Z = np.c_[rng.standard_normal((20, 3)), np.ones(20)]
    rows = Z[rng.integers(20, size=(9, 3))]
    rows[0, 1] = rows[0, 0]  # the same row twice
    q = vertices(rng.standard_normal((4, 9)), rows)
    assert np.abs(np.einsum("srk,ks->sr", rows, q)).max() < 1e-12
    assert np.linalg.norm(q, axis=0).min() > 1e-3


def test_search_gives_unit_directions_with_their_values_and_remembers_the_best(problem):
    neurons, F = problem.with_best_intercept(solve(problem, "pursuit", tol=0.02).neurons)
    Lambda, k, rng = problem.dual_point(F), problem.Z.shape[1], np.random.RandomState(0)
    search = Search(layer_of(problem.Z), lambda count: rng.normal(size=(k, count)), rng)
    effort = Effort(n_starts=50, n_relatives=50, n_steps=20, n_generations=2)
    values, q = search(Lambda, neurons.directions.T, effort)
    expected = np.linalg.norm(Lambda.T @ np.maximum(problem.Z @ q, 0), axis=0)
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(q, axis=0), 1.0)
    assert len(values) >= 50 + 2 * 100
    assert values.max() >= 0.999 * problem.alpha  # the neurons were starts
    less = effort._replace(n_starts=1, n_generations=0)
    again, _ = search(Lambda, neurons.directions.T, less)
    assert again.max() >= (1 - 1e-4) * values.max()


@pytest.mark.parametrize("C", [1, 2])
def test_circle_maxima_are_the_best_vertices_of_both_halves(C):
    """Against all breakpoints of each circle, found one by one."""
    rng = np.random.default_rng(0)
    Z, L = rng.standard_normal((15, 4)), rng.standard_normal((15, C))
    pairs = np.stack([np.linalg.qr(rng.standard_normal((4, 2)))[0] for _ in range(6)], axis=1)
    bases, tangents = pairs[:, :, 0], pairs[:, :, 1]
    found = circle_maxima(layer_of(Z), torch.as_tensor(L), bases, tangents).numpy().reshape(4, 2, 6)
    for s in range(6):
        q, t = bases[:, s], tangents[:, s]
        output = L.T @ np.maximum(Z @ q, 0)
        slopes = L @ output / np.linalg.norm(output)
        angles = np.mod(np.arctan2(-Z @ q, Z @ t), np.pi)
        for half in range(2):
            apart = (angles > 0.05) & (angles < np.pi - 0.05) | (half == 1)
            turn = angles[apart] + half * np.pi
            circle = np.outer(q, np.cos(turn)) + np.outer(t, np.sin(turn))
            best = np.abs(slopes @ np.maximum(Z @ circle, 0)).max()
            value = abs(slopes @ np.maximum(Z @ found[:, half, s], 0))
            assert value == pytest.approx(best, rel=1e-9)


def test_search_of_many_rows_is_steered_by_a_subset_and_judged_on_all(problem):
    neurons, F = problem.with_best_intercept(solve(problem, "pursuit", tol=0.01).neurons)
    Lambda, k = problem.dual_point(F), problem.Z.shape[1]

    def searched(steered=False, **rows):
        rng = np.random.RandomState(0)
        search = Search(layer_of(problem.Z), lambda count: rng.normal(size=(k, count)), rng, **rows)
        return search(Lambda, neurons.directions.T, Effort(50, 50, 20, 2, steered=steered))

    plain, _ = searched()
    for steered in (False, True):
        values, q = searched(steered=steered, steering_rows=80)
        expected = np.linalg.norm(Lambda.T @ np.maximum(problem.Z @ q, 0), axis=0)
        np.testing.assert_allclose(values, expected, rtol=1e-9)
        assert values.max() >= 0.9 * plain.max()  # half of so few rows hides some maxima


def test_rows_in_float32_give_nearly_the_same_network(problem):
    compact = replace(problem, units=WhitenedUnits(problem.Z.astype(np.float32), ALL_HERE))
    result, reference = (solve(each, "pursuit", tol=1e-3) for each in (compact, problem))
    assert result.certificate.gap <= 1e-3
    assert result.certificate.primal == pytest.approx(reference.certificate.primal, rel=2e-3)
    # The network is judged in float64, and keeps what was promised on unrounded rows.
    assert problem.objective(result.neurons) == pytest.approx(result.certificate.primal, rel=1e-6)


@pytest.fixture
def searches(monkeypatch):
    """Return a list of who searched, what it knew, and how much it did, that a fit extends."""
    noted, search = [], Search.__call__

    def note(self, Lambda, known, effort):
        noted.append((self, self.maxima, effort))
        return search(self, Lambda, known, effort)

    monkeypatch.setattr(Search, "__call__", note)
    return noted


def test_fit_over_all_arrangements_ends_with_a_search_of_its_own(problem, searches):
    result = solve(problem, Pursuit(n_verify=700), tol=0.02)
    assert result.converged
    certificate = result.certificate
    assert certificate.kind == "estimated"
    parts = [effort.n_starts for search, _, effort in searches if search is searches[-1][0]]
    assert certificate.n_verified == sum(parts) == 700
    assert 0 <= certificate.n_hits <= 700
    assert certificate.gap <= certificate.cautious_gap
    assert list(result.history["kind"]) == ["stopping"] * (result.n_iter - 1) + ["verified"]
    first, (last, knew, _) = searches[0][0], searches[-len(parts)]
    assert knew is None
    assert last is not first
    assert last.random_state is not first.random_state
    assert {id(search) for search, *_ in searches[: -len(parts)]} == {id(first)}


def test_rounds_search_roughly_until_the_gap_passes(problem, searches):
    result = solve(problem, Pursuit(n_verify=0), tol=0.02)
    steps = [effort.n_steps for *_, effort in searches]
    assert steps[0] == 10
    assert steps[-1] == 20
    first = steps.index(20)
    assert set(steps[:first]) == {10}
    # From then on there is a fine one in every round.
    assert steps[first - 1 :] == [10, 20] * ((len(steps) - first + 1) // 2)
    assert result.certificate.n_verified == 0
    assert set(result.history["kind"]) == {"stopping"}


def test_verification_does_not_change_what_goes_before(problem):
    without, with_it = (solve(problem, Pursuit(n_verify=n), tol=0.02) for n in (0, 50))
    n = without.n_iter
    objectives = with_it.history["objective"][:n]
    np.testing.assert_array_equal(without.history["objective"], objectives)
    np.testing.assert_array_equal(
        without.history["dual_gap"][:-1], with_it.history["dual_gap"][: n - 1]
    )
    assert with_it.history["dual_gap"][n - 1] >= without.history["dual_gap"][n - 1]


def scripted_verifications(monkeypatch, *excesses):
    """Let verifications see so much above alpha, one after another; return their starts."""
    starts, search = [], _verification.independent_search

    def scripted(*args, **kwargs):
        starts.append(kwargs["n_starts"])
        seen = search(*args, **kwargs)
        values = seen.found.values * (1.0 + excesses[len(starts) - 1]) / seen.found.largest
        return replace(seen, found=replace(seen.found, values=0.02 * values), n_hits=3)

    monkeypatch.setattr(_verification, "independent_search", scripted)
    return starts


def test_fit_goes_on_after_a_verification_that_sees_more_than_tol_with_twice_the_starts(
    problem, monkeypatch
):
    starts = scripted_verifications(monkeypatch, 0.5, 0.4, 0.0)
    result = solve(problem, Pursuit(n_verify=40), tol=0.05)
    assert starts == [40, 80, 160]
    assert result.converged
    kinds = result.history["kind"]
    assert (kinds == "verified").sum() == 3
    assert (result.history["dual_gap"][kinds == "verified"] > 0.05).tolist() == [True, True, False]
    assert (result.certificate.n_verified, result.certificate.n_hits) == (160, 3)


def test_verification_is_reported_whatever_it_says(problem, monkeypatch):
    scripted_verifications(monkeypatch, *[0.5] * 50)
    with pytest.warns(ConvergenceWarning, match="above tol=0.05"):
        result = solve(problem, Pursuit(n_verify=40), tol=0.05, max_iter=12)
    assert not result.converged
    assert result.certificate.infeasibility == pytest.approx(0.5)
    assert result.certificate.gap > 0.05


def test_fit_that_ends_before_its_verification_says_so(problem):
    with pytest.warns(ConvergenceWarning):
        result = solve(problem, Pursuit(), tol=1e-9, max_iter=2)
    assert (result.certificate.n_verified, result.certificate.n_hits) == (0, 0)
    assert "by the searches of the fit alone" in str(result.certificate)


def test_no_line_or_warning_calls_an_estimate_certified_or_exact(capsys, iris):
    X, y = iris
    model = ConvexBNClassifier(0.01, tol=0.02, random_state=0, verbose=1).fit(X, y)
    with pytest.warns(ConvergenceWarning) as caught:
        ConvexBNClassifier(0.01, tol=1e-6, max_iter=2, random_state=0, verbose=1).fit(X, y)
    assert model.certificate_.kind == "estimated"
    text = capsys.readouterr().out + str(model.certificate_) + str(caught[0].message)
    assert "independent search" in text
    assert "is estimated to be up to" in text
    assert "certified" not in text
    assert "exact" not in text


def test_networks_that_are_only_compared_are_not_verified(problem, searches):
    k, state = problem.Z.shape[1], np.random.RandomState(0)
    settings = RunSettings(
        tol=0.05,
        device="cpu",
        random_directions=lambda count, random_state: random_state.normal(size=(k, count)),
        random_state=state,
        provisional=True,
    )
    result = run(Pursuit(), problem, settings, max_iter=200)
    assert result.converged
    assert result.certificate.n_verified == 0
    assert len({id(search) for search, *_ in searches}) == 1


def test_verification_has_at_most_as_many_starts_as_the_rounds_and_costs_a_third(problem):
    settings = RunSettings(
        tol=0.05,
        device="cpu",
        random_directions=lambda count, state: state.normal(size=(problem.Z.shape[1], count)),
        random_state=np.random.RandomState(0),
    )
    sizes = {"n_starts": 10, "n_steps": 20, "n_verify": "auto"}
    neurons = solve(problem, "pursuit", tol=0.02).neurons
    Lambda = problem.dual_point(problem.with_best_intercept(neurons)[1])
    n_verified = {}
    for slide_steps in (0, 10**6):
        search = RoundSearch(
            problem, layer_of(problem.Z), settings, n_slide_steps=slide_steps, **sizes
        )
        n_verified[slide_steps] = search(neurons, Lambda).n_verified
    # A verification starts twice for each of its starts, with relatives: where slides cost
    # nothing, its share is half of what the round's 40 to 80 ascents of 10 and 20 steps cost.
    assert 10 <= n_verified[0] < 40
    # Where they cost much, it has as many starts as the round: fresh, neurons, maxima, relatives.
    assert 40 <= n_verified[10**6] <= 10 * 4 + 2 * 10 + 100


def test_hits_are_the_starts_that_end_in_the_best_maximum():
    """One row: all active units are one maximum, met by every start that is active there."""
    layer = layer_of(np.array([[2.0, 1.0]]))
    rng = np.random.RandomState(0)
    seen = _verification.independent_search(
        layer,
        lambda count: rng.normal(size=(2, count)),
        np.ones((1, 1)),
        np.zeros((2, 0)),
        n_starts=200,
        random_state=rng,
    )
    assert seen.found.largest == pytest.approx(5**0.5, rel=1e-5)
    # Three quarters begin on the row's hyperplane, without a slope; half of the rest are active.
    assert 10 <= seen.n_hits <= 40
    assert seen.n_starts == 200


def test_independent_search_in_parts_tells_its_progress():
    rng = np.random.RandomState(0)
    Z, told = rng.normal(size=(20, 3)), []
    seen = _verification.independent_search(
        layer_of(Z),
        lambda count: rng.normal(size=(3, count)),
        rng.normal(size=(20, 1)),
        np.zeros((3, 0)),
        n_starts=100,
        random_state=rng,
        first_part=20,
        progress=lambda done, largest: told.append((done, largest)),
    )
    assert [done for done, _ in told] == [20, 40, 80, 100]
    assert (np.diff([largest for _, largest in told]) >= 0).all()
    assert told[-1][1] == seen.found.largest


def test_independent_search_ends_once_what_it_found_decides():
    rng = np.random.RandomState(0)
    seen = _verification.independent_search(
        layer_of(rng.normal(size=(20, 3))),
        lambda count: rng.normal(size=(3, count)),
        rng.normal(size=(20, 1)),
        np.zeros((3, 0)),
        n_starts=100,
        random_state=rng,
        first_part=20,
        progress=lambda done, _: done == 40,
    )
    assert seen.n_starts == 40


def test_verification_goes_on_unless_it_has_found_more_than_tol_allows(problem, monkeypatch):
    decided, search = [], _verification.independent_search

    def watched(*args, progress, **keywords):
        decided.extend(progress(10, excess * problem.alpha) for excess in (0.0, 1.0, 1.5))
        return search(*args, progress=progress, **keywords)

    monkeypatch.setattr(_verification, "independent_search", watched)
    assert solve(problem, Pursuit(n_verify=80), tol=0.02).converged
    assert decided[-3:] == [False, False, True]


def test_search_of_a_perfect_fit_finds_nothing():
    Z = np.c_[np.arange(5.0), np.ones(5)]
    rng = np.random.RandomState(0)
    search = Search(layer_of(Z), lambda count: rng.normal(size=(2, count)), rng)
    values, _ = search(np.zeros((5, 1)), np.zeros((2, 0)), Effort(10, 10, 5, 2))
    assert not values.any()


def test_refit_satisfies_its_optimality_conditions(problem):
    start = random_neurons(problem, 25, np.random.default_rng(3))
    refitted = refit(_TorchProblem(problem, "cpu"), start)
    neurons, F = problem.with_best_intercept(refitted)
    A = hidden(problem, start.directions)
    slopes = A.T @ problem.dual_point(F)
    assert np.linalg.norm(slopes, axis=1).max() <= problem.alpha * (1 + 1e-3)
    kept = hidden(problem, neurons.directions).T @ problem.dual_point(F)
    pull = problem.alpha * neurons.weights / np.linalg.norm(neurons.weights, axis=1)[:, None]
    np.testing.assert_allclose(kept, pull, atol=2e-3 * problem.alpha)
    assert problem.objective(refitted) <= problem.objective(start)


def test_slide_lowers_the_objective(problem):
    training = _TorchProblem(problem, "cpu")
    start = refit(training, random_neurons(problem, 25, np.random.default_rng(3)))
    assert problem.objective(slide(training, start, n_steps=30)) < problem.objective(start)


def test_merging_keeps_the_fit_and_does_not_raise_the_mass(problem):
    q = np.abs(np.random.default_rng(0).standard_normal((6, problem.Z.shape[1])))
    q[:, -1] = 30.0  # active on every row: one pattern
    C = problem.n_outputs
    g = np.repeat(np.eye(C)[:1], 6, axis=0) * np.array([1, 2, 3, 1, 2, -1])[:, None]
    neurons = Neurons.from_products(q, g, np.zeros(C), None)
    merged = merge_equal_units(problem, neurons)
    assert len(merged) == 2
    before, after = (problem.fit_without_intercept(n) for n in (neurons, merged))
    np.testing.assert_allclose(after, before, atol=1e-9)
    assert merged.mass <= neurons.mass + 1e-12


# --- the whole solver -------------------------------------------------------------------------

# Smallest objectives seen in long runs of several algorithms (targets of unit variance).
BEST = [
    ("diabetes", 0.03, 0.250997),
    ("uci/yacht", 0.01, 0.030311),
    ("uci/energy", 0.01, 0.037585),
    ("uci/airfoil", 0.01, 0.161761),
]


@pytest.mark.parametrize(("name", "alpha", "best"), BEST)
def test_reaches_the_best_known_objective(name, alpha, best):
    if name == "diabetes":
        X, y = load_diabetes(return_X_y=True)
    else:
        data = shared_data(name)
        X, y = data["X"], data["y"]
    m = ConvexBNRegressor(alpha, shrinkage=0.0, tol=1e-3, random_state=1).fit(X, y / y.std())
    assert m.objective_ <= 1.002 * best
    assert m.certificate_.dual <= 1.0005 * best
    assert m.n_neurons_ < len(X)


def test_agrees_with_the_exact_program_on_all_arrangements(diabetes):
    """One component: every arrangement can be listed, so the exact certificate judges."""
    X, y = diabetes
    X, y = X[:25], y[:25]
    kw = {"alpha": 0.02, "n_components": 1, "tol": 1e-5, "random_state": 0}
    pursuit = ConvexBNRegressor(**kw).fit(X, y)
    listed = ConvexBNRegressor(**kw, solver="interior_point", n_gates="all").fit(X, y)
    assert listed.certificate_.kind == "exact"
    assert listed.certificate_.program == "all arrangements"
    assert pursuit.objective_ == pytest.approx(listed.objective_, rel=3e-5)
    assert listed.certificate_.dual <= pursuit.objective_ * (1 + 1e-12)


@pytest.mark.parametrize("n_components", [1, 2])
@pytest.mark.parametrize("labels", [False, True])
def test_few_dimensions_are_certified_exactly(n_components, labels):
    X, y = load_iris(return_X_y=True) if labels else load_diabetes(return_X_y=True)
    estimator = ConvexBNClassifier if labels else ConvexBNRegressor
    m = estimator(0.02, n_components=n_components, tol=1e-3, random_state=0).fit(X, y)
    assert m.certificate_.kind == "exact"
    assert 0 <= m.dual_gap_ <= 1e-3
    assert "certified" in str(m.certificate_)


def test_seeds_agree_within_their_gaps(iris):
    X, y = iris
    fits = [ConvexBNClassifier(0.02, tol=1e-3, random_state=s).fit(X, y) for s in range(3)]
    values = [m.objective_ for m in fits]
    assert max(values) <= min(values) * (1 + 2e-3)
    assert all(m.certificate_.kind == "estimated" for m in fits)


def test_stopping_early_leaves_a_network_with_its_own_certificate(iris):
    X, y = iris
    m = ConvexBNClassifier(0.01, tol=1e-6, max_iter=3, random_state=0)
    with pytest.warns(ConvergenceWarning):
        m.fit(X, y)
    assert m.score(X, y) > 0.9
    assert 1e-6 < m.dual_gap_ < 1


def test_device_without_memory_leaves_the_estimator_and_says_what_helps(monkeypatch, diabetes):
    X, y = diabetes
    model = ConvexBNRegressor(0.1, random_state=0).fit(X, y)
    before = model.predict(X)

    def fail(self, *args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    for owner, name in ((Search, "__call__"), (Whitening, "transform")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            with pytest.raises(MemoryError, match=r"n_components.* 3.00 GiB"):
                model.fit(X, 2 * y)
        np.testing.assert_array_equal(model.predict(X), before)


def test_many_rows_of_many_features_are_fitted():
    """The count of operations of the exact search, n^(k - 1), is beyond any float here."""
    X, y = make_classification(1300, 130, n_informative=10, random_state=0)
    model = ConvexBNClassifier(0.15, tol=0.01, random_state=0).fit(X, y)
    assert model.dual_gap_ <= 0.01
    assert model.certificate_.kind == "estimated"
