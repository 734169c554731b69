from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from sklearn_convexbn.program._arrangements import (
    activation_patterns,
    arrangement_bound,
    cone_norm,
    distinct_gates,
    enumerate_gates,
    project_onto_cone,
    random_directions,
)
from tests.helpers import whiten


def _pattern_set(Z, gates):
    """Patterns of gates (k, P) as a set, without the one that is active on no row."""
    patterns = activation_patterns(Z, gates).T
    return {tuple(map(bool, row)) for row in patterns if row.any()}


def _rows(kind, n, k, seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, k))
    return {
        "general": A,
        "intercept": np.hstack([A[:, :-1], np.ones((n, 1))]),
        "grid": rng.integers(-1, 2, size=(n, k)).astype(float),
        "duplicated": np.vstack([A, A[:2]]),
        "parallel": np.vstack([A, 2.0 * A[:2], -3.0 * A[1:3]]),
        "zero": np.vstack([A[:1], np.zeros((2, k)), A[1:]]),
        "rank": rng.normal(size=(n, 2)) @ rng.normal(size=(2, k)),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["general", "intercept", "grid", "duplicated", "parallel", "zero", "rank"]
)
@pytest.mark.parametrize(("n", "k"), [(4, 2), (7, 2), (5, 3), (6, 3), (5, 4)])
@pytest.mark.parametrize("seed", range(2))
def test_enumeration_is_what_sampling_finds(kind, n, k, seed):
    Z = _rows(kind, n, k, seed)
    gates = enumerate_gates(Z)
    samples = np.random.default_rng(99).normal(size=(k, 100_000))
    enumerated = _pattern_set(Z, gates)
    assert _pattern_set(Z, samples) <= enumerated
    assert len(enumerated) == gates.shape[1]
    # Strictly inside its cone, so that every listed pattern is one a direction has.
    nonzero = Z[np.linalg.norm(Z, axis=1) > 0]
    assert np.abs(nonzero @ gates).min() > 1e-12
    np.testing.assert_allclose(np.linalg.norm(gates, axis=0), 1.0)


@pytest.mark.parametrize(("n", "k"), [(1, 3), (3, 3), (9, 1), (8, 2), (9, 3), (8, 4), (7, 5)])
def test_enumeration_in_general_position_has_covers_count(n, k):
    Z = _rows("intercept", n, k, 0)
    # With k = 1 all rows are the same hyperplane.
    count = 2 if k == 1 else arrangement_bound(n, k)
    assert enumerate_gates(Z).shape[1] == count - 1  # the empty pattern is left out


def test_covers_count():
    assert arrangement_bound(4, 2) == 8
    assert arrangement_bound(5, 3) == 2 * (1 + 4 + 6)
    assert arrangement_bound(3, 10) == 2**3


@pytest.mark.parametrize(("n", "k"), [(6, 3), (12, 2)])
def test_bound_holds_for_degenerate_rows(n, k):
    for kind in ("grid", "rank", "parallel"):
        Z = _rows(kind, n, k, 3)
        assert enumerate_gates(Z).shape[1] <= arrangement_bound(len(Z), k)


def test_too_many_arrangements_are_refused_with_their_number():
    Z = np.random.default_rng(0).normal(size=(200, 10))
    with pytest.raises(
        ValueError, match=rf"up to {arrangement_bound(200, 10)} arrangements of 200"
    ):
        enumerate_gates(Z)
    with pytest.raises(ValueError, match=r"more than the bound of 30\b.*n_components"):
        enumerate_gates(Z[:6, :3], max_arrangements=30)
    Z[:, 2] = 1.0
    everything = enumerate_gates(Z[:6, :3], max_arrangements=None)
    assert everything.shape[1] == arrangement_bound(6, 3) - 1
    # Copies of a row add no hyperplane and do not count.
    assert enumerate_gates(np.repeat(Z[:2, :2], 500, axis=0), max_arrangements=8).shape[1] <= 4


def test_rows_that_are_all_zero_have_one_arrangement():
    assert enumerate_gates(np.zeros((3, 2))).shape == (2, 1)


def test_distinct_gates_keeps_the_first_of_each_pattern_in_order():
    rng = np.random.default_rng(0)
    Z = np.hstack([rng.normal(size=(5, 2)), np.ones((5, 1))])
    gates = np.hstack([rng.normal(size=(3, 300)), [[0.0], [0.0], [-1.0]]])
    kept = distinct_gates(Z, gates)
    expected, seen = [], set()
    for gate in gates.T:
        pattern = tuple(Z @ gate >= 0)
        if any(pattern) and pattern not in seen:
            seen.add(pattern)
            expected.append(gate)
    np.testing.assert_array_equal(kept, np.array(expected).T)
    assert kept.shape[1] < 300
    np.testing.assert_array_equal(distinct_gates(Z, kept), kept)


@pytest.mark.parametrize("n_components", [None, 2])
def test_random_directions_do_not_depend_on_the_signs_of_components(n_components):
    rng = np.random.default_rng(0)
    X, weights = rng.normal(size=(20, 4)), np.ones(20)
    whitening = whiten(X, weights, n_components=n_components)[1]
    signs = np.where(np.arange(whitening.n_components) % 2, 1.0, -1.0)
    flipped = replace(whitening, components=whitening.components * signs)
    hidden, same = (
        w.transform(X) @ random_directions(w, 50, np.random.RandomState(3))
        for w in (whitening, flipped)
    )
    np.testing.assert_allclose(same, hidden, atol=1e-12)
    assert np.ptp(hidden) > 1.0


def test_random_directions_do_not_depend_on_the_rotation_of_equal_components():
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.normal(size=(20, 4)))[0]
    whitening = whiten(X, np.ones(20), shrinkage=1.0)[1]  # all scales are equal
    R = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    rotated = replace(whitening, components=whitening.components @ R)
    hidden, same = (
        w.transform(X) @ random_directions(w, 50, np.random.RandomState(3))
        for w in (whitening, rotated)
    )
    np.testing.assert_allclose(same, hidden, atol=1e-12)


def test_random_directions_are_standard_normal():
    whitening = whiten(np.random.default_rng(0).normal(size=(20, 4)), np.ones(20), n_components=3)[
        1
    ]
    q = random_directions(whitening, 20_000, np.random.RandomState(0))
    np.testing.assert_allclose(np.cov(q), np.eye(4), atol=0.05)
    np.testing.assert_allclose(q.mean(axis=1), 0.0, atol=0.05)


def _largest_in_cone(M, c):
    """Maximise <c, x> over x in the cone M x >= 0 within the unit box, by linear programming."""
    found = optimize.linprog(-c, A_ub=-M, b_ub=np.zeros(len(M)), bounds=(-1, 1))
    assert found.status == 0
    return -found.fun


@given(
    n=st.integers(1, 25), k=st.integers(1, 6), seed=st.integers(0, 10**6), degenerate=st.booleans()
)
def test_projection_onto_a_cone_is_the_moreau_decomposition(n, k, seed, degenerate):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, k)) * 10.0 ** rng.uniform(-3, 3, size=(n, 1))
    if degenerate:
        Z = np.vstack([Z, Z[:1], np.zeros((1, k))])
    pattern = Z @ rng.normal(size=k) >= 0
    c = rng.normal(size=k) * 10.0 ** rng.uniform(-6, 6)
    size = np.linalg.norm(c)
    q = project_onto_cone(Z, pattern, c)
    lengths = np.linalg.norm(Z, axis=1)
    M = np.where(pattern, 1.0, -1.0)[:, None] * Z
    assert (M @ q >= -1e-9 * lengths * size).all()
    assert abs((c - q) @ q) <= 1e-9 * size**2
    M = M[lengths > 0] / lengths[lengths > 0, None]
    assert _largest_in_cone(M, (c - q) / size) <= 1e-7  # the residual is in the polar cone
    np.testing.assert_allclose(project_onto_cone(Z, pattern, q), q, atol=1e-9 * size)
    assert cone_norm(Z, pattern, c) == pytest.approx(np.linalg.norm(q))


def test_projection_of_points_inside_and_opposite():
    rng = np.random.default_rng(0)
    Z = np.hstack([rng.normal(size=(40, 3)), np.ones((40, 1))])
    inside = rng.normal(size=4)
    pattern = Z @ inside >= 0
    np.testing.assert_allclose(project_onto_cone(Z, pattern, inside), inside, atol=1e-12)
    np.testing.assert_allclose(
        project_onto_cone(Z, pattern, -(np.where(pattern, 1, -1) @ Z)), 0.0, atol=1e-9
    )
    np.testing.assert_array_equal(project_onto_cone(Z, pattern, np.zeros(4)), 0.0)


def test_cone_norm_is_the_largest_correlation_in_the_cone():
    rng = np.random.default_rng(1)
    Z = np.hstack([rng.normal(size=(6, 2)), np.ones((6, 1))])
    samples = rng.normal(size=(3, 200_000))
    samples /= np.linalg.norm(samples, axis=0)
    patterns = activation_patterns(Z, samples)
    c = rng.normal(size=3)
    for gate in enumerate_gates(Z).T:
        pattern = Z @ gate >= 0
        inside = samples[:, (patterns == pattern[:, None]).all(axis=0)]
        largest, norm = (c @ inside).max(initial=0.0), cone_norm(Z, pattern, c)
        assert largest <= norm + 1e-9
        if inside.shape[1] > 1000:
            assert largest >= norm - 0.05


def test_projection_where_nnls_has_been_wrong():
    """SciPy 1.17.1's nnls reports a residual of zero for these degenerate rows; it is 3.28."""
    Z = np.array(
        [[1, 0, -2], [-2, 0, 2], [1, -1, 2], [-1, -2, 1], [2, -1, 0], [-1, 1, -1], [-2, 2, 2]]
    )
    Z = np.vstack([Z, [1, 0, 0]]).astype(float)
    pattern = np.array([0, 1, 1, 0, 0, 1, 1, 1], dtype=bool)
    c = np.array([4.125, 1.25, 4.125])
    q = project_onto_cone(Z, pattern, c)
    assert (np.where(pattern, 1, -1) * (Z @ q)).min() >= -1e-8
    assert q @ (c - q) == pytest.approx(0.0, abs=1e-8)
    assert np.linalg.norm(q) == pytest.approx(4.388669, rel=1e-6)


def test_projection_survives_a_wrong_nnls(monkeypatch):
    Z, c = np.eye(2), np.array([1.0, -1.0])
    monkeypatch.setattr(optimize, "nnls", lambda M, b, **_: (np.full(M.shape[1], 7.0), 0.0))
    np.testing.assert_allclose(project_onto_cone(Z, np.ones(2, dtype=bool), c), [1, 0], atol=1e-8)


def test_projection_survives_an_nnls_that_cycles(monkeypatch):
    """SciPy's nnls before 1.15 does for some cones, where the projection is zero."""

    def cycles(*_, **__):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(optimize, "nnls", cycles)
    rng = np.random.default_rng(0)
    for _ in range(20):
        Z, gate = rng.normal(size=(7, 3)), rng.normal(size=3)
        pattern = Z @ gate >= 0
        np.testing.assert_allclose(project_onto_cone(Z, pattern, gate), gate, atol=1e-8)
        polar = -Z.T @ np.where(pattern, 1.0, -1.0)
        np.testing.assert_allclose(project_onto_cone(Z, pattern, polar), 0.0, atol=1e-8)
    # Rows for which lsq_linear multiplies zero by an infinite step, with a warning of NumPy's.
    Z = np.array([[-1.0, -1.0], [-1.0, 0.0], [0.0, 1.0]])
    q = project_onto_cone(Z, np.ones(3, dtype=bool), np.array([1.0, 2.0]))
    np.testing.assert_allclose(q, [-0.5, 0.5], atol=1e-8)
