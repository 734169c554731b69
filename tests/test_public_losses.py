"""Losses that users choose: their conjugates, what they fit, and losses of a user's own."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    alpha_max,
    certify,
    convexbn_path,
)
from sklearn_convexbn.losses import (
    Huber,
    LogLoss,
    Loss,
    Poisson,
    Quantile,
    SquaredError,
    array_namespace,
)
from sklearn_convexbn.losses._base import LOSSES, SoftmaxLoss, optimal_intercept
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import make_problem, solve

NUMBERS = [SquaredError(), Huber(0.7), Poisson(), Quantile(0.8, 0.1), Quantile(0.3, 0.5)]
per_loss = pytest.mark.parametrize("loss", NUMBERS, ids=repr)


class Disguised(Loss):
    """The squared error under another name, by the four methods only."""

    name = "disguised"
    curvature = 1.0

    def value(self, F, Y, p):
        return 0.5 * (p[:, None] * (F - Y) ** 2).sum()

    def gradient(self, F, Y, p):
        return p[:, None] * (F - Y)

    def conjugate(self, U, Y, p):
        return (U * (Y + 0.5 * U / p[:, None])).sum()

    def hessian(self, F, Y, p):
        return p[:, None, None] * array_namespace(F).eye(F.shape[1], dtype=F.dtype)


class Coupled(SoftmaxLoss):
    """The softmax cross-entropy without the form of its Hessian."""

    curvatures = Loss.curvatures


def _point(loss, n=40, C=2, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.1, 1.0, size=n)
    Y = (
        rng.poisson(1.5, size=(n, C)) * 1.0
        if isinstance(loss, Poisson)
        else rng.normal(size=(n, C))
    )
    return scale * rng.normal(size=(n, C)), Y, p / p.sum()


def _row(loss, f, y):
    """The loss of one number by its plain formula."""
    if isinstance(loss, Huber):
        r = abs(f - y)
        return 0.5 * r**2 if r <= loss.delta else loss.delta * (r - 0.5 * loss.delta)
    if isinstance(loss, Poisson):
        return np.exp(f) - y * f + (y * np.log(y) - y if y else 0.0)
    if isinstance(loss, Quantile):
        return loss.width * np.log1p(np.exp((f - y) / loss.width)) - loss.quantile * (f - y)
    return 0.5 * (f - y) ** 2


@per_loss
def test_value_is_the_plain_formula(loss):
    F, Y, p = _point(loss)
    expected = sum(p[i] * _row(loss, F[i, c], Y[i, c]) for i, c in np.ndindex(*F.shape))
    assert loss.value(F, Y, p) == pytest.approx(expected, rel=1e-12)


@per_loss
def test_gradient_and_hessian_are_differences(loss):
    F, Y, p = _point(loss)
    E = 1e-6 * np.random.default_rng(1).normal(size=F.shape)
    change = (loss.value(F + E, Y, p) - loss.value(F - E, Y, p)) / 2
    assert change == pytest.approx((loss.gradient(F, Y, p) * E).sum(), rel=1e-6, abs=1e-14)
    change = (loss.gradient(F + E, Y, p) - loss.gradient(F - E, Y, p)) / 2
    product = (loss.hessian(F, Y, p) @ E[:, :, None])[:, :, 0]
    np.testing.assert_allclose(change, product, rtol=1e-5, atol=1e-14)


@per_loss
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_fenchel_young(loss, scale, share):
    """Equality at the gradient, an inequality at every share of it: dual points stay feasible."""
    F, Y, p = _point(loss, scale=scale)
    U = loss.gradient(F, Y, p)
    value = loss.value(F, Y, p)
    size = 1.0 + abs(value) + abs(U * F).sum()
    assert value + loss.conjugate(U, Y, p) == pytest.approx((U * F).sum(), abs=1e-11 * size)
    U = share * loss.gradient(_point(loss, seed=5, scale=scale)[0], Y, p)
    assert np.isfinite(loss.conjugate(U, Y, p))
    assert value + loss.conjugate(U, Y, p) >= (U * F).sum() - 1e-11 * size


@pytest.mark.parametrize(
    ("loss", "y", "ends"),
    [
        (Huber(0.7), 0.3, (-0.7, 0.7)),
        (Poisson(), 0.0, (0.0, None)),
        (Poisson(), 3.0, (-3.0, None)),
        (Quantile(0.8, 0.1), 0.3, (-0.8, 0.2)),
    ],
    ids=repr,
)
def test_conjugate_at_the_ends_of_its_domain(loss, y, ends):
    one, Y = np.ones(1), np.array([[y]])
    f = np.linspace(-40.0, 40.0, 800_001)
    values = np.array([_row(loss, 1.0 * t, y) for t in f[::100]])
    for end, side in zip(ends, (-1.0, 1.0), strict=True):
        if end is None:
            assert np.isfinite(loss.conjugate(np.array([[50.0]]), Y, one))
            continue
        at_end = loss.conjugate(np.array([[end]]), Y, one)
        assert at_end == pytest.approx((end * f[::100] - values).max(), abs=1e-6)
        assert loss.conjugate(np.array([[end + 0.01 * side]]), Y, one) == np.inf
        assert loss.outside(np.array([[end + 0.01 * side]]), Y, one) == pytest.approx(0.01)
        assert loss.outside(np.array([[0.999 * end]]), Y, one) == 0.0


@per_loss
def test_curvatures_are_bounded_and_those_of_the_hessian(loss):
    F, Y, p = _point(loss)
    H = loss.hessian(F, Y, p)
    D, U = loss.curvatures(F, Y, p)
    assert U.shape == (0, *F.shape)
    assert (H.diagonal(axis1=1, axis2=2) <= loss.curvature * p[:, None] * (1 + 1e-12)).all()
    if isinstance(loss, (Huber, Quantile)):  # the parabola that touches at F is above the loss
        rng = np.random.default_rng(3)
        if isinstance(loss, Quantile):
            D = 10.0 * D - 9.0 * H.diagonal(axis1=1, axis2=2)
        for _ in range(50):
            step = rng.normal(size=F.shape) * rng.choice([0.1, 1.0, 10.0])
            model = (loss.gradient(F, Y, p) * step + 0.5 * D * step**2).sum()
            assert loss.value(F + step, Y, p) <= loss.value(F, Y, p) + model + 1e-9 * abs(model)
    else:
        np.testing.assert_allclose(D, H.diagonal(axis1=1, axis2=2), rtol=1e-12)


@pytest.mark.parametrize("loss", [SoftmaxLoss(), Coupled(), Disguised()], ids=repr)
def test_parts_of_the_hessian_add_up(loss):
    rng = np.random.default_rng(0)
    F, Y, p = rng.normal(size=(20, 4)), np.eye(4)[rng.integers(4, size=20)], np.full(20, 0.05)
    D, U = loss.curvatures(F, Y, p)
    full = D[:, :, None] * np.eye(4) - np.einsum("rnc,rnd->ncd", U, U)
    np.testing.assert_allclose(full, loss.hessian(F, Y, p), atol=1e-15)


@per_loss
def test_torch_agrees_with_numpy(loss):
    F, Y, p = _point(loss)
    tensors = [torch.as_tensor(a) for a in (F, Y, p)]
    for method in (loss.value, loss.gradient, loss.hessian, lambda *a: loss.curvatures(*a)[0]):
        np.testing.assert_allclose(method(*tensors).numpy(), method(F, Y, p), atol=1e-13)
    U = 0.5 * loss.gradient(F, Y, p)
    conjugate = loss.conjugate(torch.as_tensor(U), *tensors[1:])
    assert float(conjugate) == pytest.approx(loss.conjugate(U, Y, p), rel=1e-12)


@per_loss
@pytest.mark.parametrize("shift", [-300.0, -5.0, 0.0, 5.0, 300.0])
def test_best_intercept_from_any_distance(loss, shift):
    F, Y, p = _point(loss, scale=1.0)
    gradient = loss.gradient(F + shift + optimal_intercept(loss, F + shift, Y, p, ALL_HERE), Y, p)
    assert abs(gradient.sum(axis=0)).max() <= 1e-9 * abs(gradient).sum()


def test_best_intercept_without_a_bound_on_the_curvature():
    """By backtracking alone: a Newton step from far below the mean overshoots its exponential."""

    class Exponential(Poisson):
        first_intercept = Loss.first_intercept

    loss = Exponential()
    F, Y, p = _point(loss, scale=1.0)
    for shift in (-6.0, 0.0, 20.0):
        b = optimal_intercept(loss, F + shift, Y, p, ALL_HERE)
        np.testing.assert_allclose(
            b + shift, optimal_intercept(Poisson(), F, Y, p, ALL_HERE), atol=1e-9
        )


def test_losses_are_parameter_objects():
    loss = Quantile(0.9, width=0.02)
    assert repr(loss) == "Quantile(quantile=0.9, width=0.02)"
    assert clone(loss) == loss
    assert clone(loss) is not loss
    assert loss != Quantile(0.9) != Huber()
    assert len({Huber(1.0), Huber(1.0), Huber(2.0)}) == 2
    assert loss.get_params() == {"quantile": 0.9, "width": 0.02}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Huber(-1.0), "'delta' parameter of Huber must be a float in the range"),
        (Quantile(1.0), "'quantile' parameter of Quantile must be"),
        (Quantile(0.5, width=0.0), "'width' parameter of Quantile must be"),
        (LogLoss(), "is for targets that are labels, and here they are numbers"),
        ("log_loss", "'loss' parameter of ConvexBNRegressor must be"),
    ],
)
def test_bad_losses_are_refused_before_a_fit(loss, message):
    X, y = np.random.default_rng(0).normal(size=(2, 20, 1))
    model = ConvexBNRegressor(loss=loss)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y[:, 0])
    assert not hasattr(model, "coefs_")


def test_poisson_refuses_negative_targets_and_zeros_alone():
    X = np.random.default_rng(0).normal(size=(20, 2))
    model = ConvexBNRegressor(loss="poisson")
    with pytest.raises(
        ValueError, match=r"Poisson loss needs targets in \[0, inf\]. Got y from -1"
    ):
        model.fit(X, np.arange(20.0) - 1.0)
    with pytest.raises(ValueError, match="no constant is the best for targets that are all 0"):
        model.fit(X, np.c_[np.arange(20.0), np.zeros(20)])


# ------------------------------------------------------------------------- against CVXPY


def _reference(problem, loss):
    """Optimum of the gated program, stated anew."""
    import cvxpy as cp

    (k, P), C = problem.gates.shape, problem.n_outputs
    blocks, b = [cp.Variable((k, C)) for _ in range(P)], cp.Variable((1, C))
    D = [np.diag(1.0 * (problem.Z @ g >= 0)) @ problem.Z for g in problem.gates.T]
    F = sum(A @ S for A, S in zip(D, blocks, strict=True)) + np.ones((len(problem.Z), 1)) @ b
    R, p, Y = F - problem.Y, problem.p[:, None], problem.Y
    if isinstance(loss, Huber):
        a = cp.Variable(R.shape)  # r = a + rest, the infimal convolution of both parts
        rows = 0.5 * cp.square(a) + loss.delta * cp.abs(R - a)
    elif isinstance(loss, Poisson):
        rows = cp.exp(F) - cp.multiply(Y, F) + np.where(Y > 0, Y * np.log(np.maximum(Y, 1)) - Y, 0)
    elif isinstance(loss, Quantile):
        rows = loss.width * cp.logistic(R / loss.width) - loss.quantile * R
    else:
        rows = 0.5 * cp.square(R)
    mass = sum(cp.normNuc(S) if C > 1 else cp.norm(S) for S in blocks)
    program = cp.Problem(cp.Minimize(cp.sum(cp.multiply(p, rows)) + problem.alpha * mass))
    return program.solve(solver="CLARABEL")


@per_loss
@pytest.mark.parametrize("C", [1, 2])
def test_gated_programs_have_the_value_of_cvxpy(loss, C):
    rng = np.random.default_rng(2)
    _, Y, _ = _point(loss, n=30, C=C)
    problem = make_problem(
        rng.normal(size=(30, 2)), Y, "squared", 0.02, "gated_relu", gates=12, loss_object=loss
    )
    expected = _reference(problem, loss)
    # Clarabel ends where it can: with the Poisson loss its network's own gap is 1.5e-5.
    for solver, tol in (("fista", 1e-5), ("cvxpy", 1e-4)):
        result = solve(problem, solver, tol=tol)
        assert result.certificate.kind == "exact"
        assert result.certificate.primal == pytest.approx(expected, rel=2e-5)
        assert result.certificate.dual <= expected * (1 + 1e-6)
        assert result.certificate.gap <= tol


@per_loss
def test_relu_lists_agree_between_solvers(loss):
    rng = np.random.default_rng(3)
    _, Y, _ = _point(loss, n=25, C=1)
    problem = make_problem(rng.normal(size=(25, 2)), Y, "squared", 0.02, gates=15, loss_object=loss)
    interior, cone = (solve(problem, name, tol=1e-4) for name in ("interior_point", "cvxpy"))
    assert interior.certificate.gap <= 1e-4
    assert interior.certificate.primal == pytest.approx(cone.certificate.primal, rel=2e-4)


@per_loss
@pytest.mark.parametrize("C", [1, 2])
def test_pursuit_reaches_its_tolerance(loss, C):
    rng = np.random.default_rng(4)
    _, Y, _ = _point(loss, n=40, C=C)
    problem = make_problem(rng.normal(size=(40, 2)), Y, "squared", 0.03, loss_object=loss)
    result = solve(problem, "pursuit", tol=1e-2)
    assert result.certificate.gap <= 1e-2
    assert 0.0 < result.certificate.dual <= result.certificate.primal


# ------------------------------------------------------------------------- own losses


@pytest.mark.parametrize("own", [Disguised(), Coupled()], ids=repr)
def test_own_loss_on_several_outputs_is_as_good_as_the_builtin_one(own):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    Y = np.tanh(X @ rng.normal(size=(3, 3)))
    name = "squared" if isinstance(own, Disguised) else "softmax"
    Y = Y if name == "squared" else np.eye(3)[Y.argmax(axis=1)]
    builtin = solve(make_problem(X, Y, name, 0.01), "pursuit", tol=1e-3)
    result = solve(make_problem(X, Y, name, 0.01, loss_object=own), "pursuit", tol=1e-3)
    assert result.certificate.gap <= 1e-3
    assert result.certificate.primal == pytest.approx(builtin.certificate.primal, rel=1e-3)
    assert result.n_iter <= builtin.n_iter + 2


def test_solvers_refuse_an_own_loss_that_they_cannot_state():
    X = np.random.default_rng(0).normal(size=(20, 2))
    model = ConvexBNRegressor(loss=Disguised(), solver="cvxpy")
    with pytest.raises(ValueError, match=r"the disguised loss, which has no form in CVXPY. Use"):
        model.fit(X, X[:, 0])


# ------------------------------------------------------------------------- estimators


def _counts():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(80, 2))
    return X, rng.poisson(np.exp(1.0 + X[:, 0] - X[:, 1] ** 2)).astype(float)


def test_poisson_predicts_means_that_add_up_to_the_counts():
    X, y = _counts()
    model = ConvexBNRegressor(alpha=0.03, loss="poisson", random_state=0).fit(X, y)
    mean = model.predict(X)
    assert (mean > 0).all()
    assert mean.sum() == pytest.approx(y.sum(), rel=1e-9)  # the intercept's equation
    raw = np.maximum(X @ model.coefs_[0] + model.intercepts_[0], 0) @ model.coefs_[1]
    np.testing.assert_allclose(mean, np.exp(raw + model.intercepts_[1])[:, 0], rtol=1e-9)
    assert certify(model, X, y, alpha=0.03).primal == pytest.approx(model.objective_, rel=1e-6)


def test_huber_in_the_units_of_y(diabetes):
    """delta is relative to the standard deviation: objective and weight decay scale with y."""
    X, y = diabetes
    X, y = X[:60, :3], y[:60]
    settings = {"alpha": 0.1, "shrinkage": 0.0, "loss": Huber(0.5), "random_state": 0}
    model = ConvexBNRegressor(**settings).fit(X, y)
    residuals = abs(model.predict(X) - y)
    delta = 0.5 * y.std()
    inner = np.minimum(residuals, delta)
    value = np.mean(inner * (residuals - 0.5 * inner))
    weights = (model.batch_norm_["scale"], model.batch_norm_["shift"], model.coefs_[1])
    penalty = 0.5 * model.weight_decay_ * sum((part**2).sum() for part in weights)
    assert model.objective_ == pytest.approx(value + penalty, rel=1e-9)
    scaled = ConvexBNRegressor(**settings).fit(X, 10 * y + 3)
    assert scaled.objective_ == pytest.approx(100 * model.objective_, rel=1e-6)
    assert scaled.weight_decay_ == pytest.approx(10 * model.weight_decay_)


def test_quantiles_cover_their_share_in_the_units_of_y():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(300, 1))
    y = 5.0 + 20.0 * (X[:, 0] + 0.3 * rng.normal(size=300) * (1.2 + X[:, 0]))
    for quantile in (0.1, 0.9):
        loss = Quantile(quantile, width=0.01)
        model = ConvexBNRegressor(alpha=1e-2, loss=loss, random_state=0).fit(X, y)
        assert np.mean(y <= model.predict(X)) == pytest.approx(quantile, abs=0.02)
        error, width = y - model.predict(X), 0.01 * y.std()
        value = np.mean(width * np.logaddexp(0, -error / width) + quantile * error)
        weights = (model.batch_norm_["scale"], model.batch_norm_["shift"], model.coefs_[1])
        penalty = 0.5 * 1e-2 * sum((part**2).sum() for part in weights)
        assert model.weight_decay_ == pytest.approx(1e-2)
        assert model.objective_ == pytest.approx(value + penalty, rel=1e-9)


def test_narrow_quantiles_leave_the_constant_model():
    """Nearly all rows are far from y in widths, where the Hessian is nearly zero."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 4, 300))
    y = np.sin(2 * x) + (0.15 + 0.25 * x) * (rng.exponential(size=len(x)) - 1)
    loss = Quantile(0.1, width=0.02)
    model = ConvexBNRegressor(5e-3, loss=loss, max_iter=20, random_state=0).fit(x[:, None], y)
    assert model.dual_gap_ <= 0.01
    assert model.certificate_.kind == "exact"


def test_loss_names_and_instances_everywhere():
    X, y = _counts()
    grid = GridSearchCV(
        ConvexBNRegressor(0.1, loss=Huber(), random_state=0), {"loss__delta": [0.5, 1.0]}, cv=2
    ).fit(X, y)
    assert grid.best_estimator_.loss.delta in (0.5, 1.0)
    model = ConvexBNRegressorCV(3, eps=0.3, cv=2, loss=Poisson(), random_state=0).fit(X, y)
    assert (model.predict(X) > 0).all()
    assert model.loss_ == Poisson()
    largest = alpha_max(X, y, loss="poisson", random_state=0)
    assert largest == alpha_max(X, y, loss=Poisson(), random_state=0)
    _, networks, gaps = convexbn_path(X, y, loss="huber", alphas=2, eps=0.3, random_state=0)
    assert len(networks) == 2
    assert (gaps <= 0.01).all()


def test_classifier_takes_an_instance():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    y = (X[:, 0] > 0) + 1 * (X[:, 1] > 0)
    named = ConvexBNClassifier(0.03, random_state=0).fit(X, y)
    model = ConvexBNClassifier(0.03, random_state=0, loss=LogLoss()).fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), named.predict_proba(X))
    with pytest.raises(
        ValueError, match="is for targets that are numbers, and here they are labels"
    ):
        ConvexBNClassifier(loss=Huber()).fit(X, y)


def test_every_loss_is_covered_here():
    assert {type(loss) for loss in NUMBERS} == {SquaredError, Huber, Poisson, Quantile}
    assert set(LOSSES) == {"squared", "logistic", "softmax"}
