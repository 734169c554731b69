"""The gap of networks trained anywhere: agreement, bounds, directions, bad input."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_linnerud
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor, certify
from sklearn_convexbn.program._arrangements import cone_norm, largest_in_cones
from tests.helpers import hidden, make_problem, random_neurons

ALPHA = 0.1


@cache
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X[:150], (y[:150] - y[:150].mean()) / y[:150].std()


@cache
def optimum():
    return ConvexBNRegressor(ALPHA, tol=1e-3, random_state=0).fit(*diabetes())


def bn_network(d, m, C=1, *, seed=0, eps=1e-5, dtype=torch.float64, **first):
    """A batch-normalized network whose weights, scales and shifts are all random."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Linear(d, m, **first),
        torch.nn.BatchNorm1d(m, eps=eps),
        torch.nn.ReLU(),
        torch.nn.Linear(m, C),
    ).to(dtype)
    with torch.no_grad():
        network[1].weight.normal_()
        network[1].bias.normal_()
    return network


def loss_and_mass(network, X, y, loss):
    """The mean loss in train mode, and the sum of |q| |v| from the units' own values."""
    network = network.double().train()
    with torch.no_grad():
        H = network[:2](torch.tensor(X))
        value = float(loss(network(torch.tensor(X)), torch.tensor(y)))
    H, V = H.numpy(), network[-1].weight.detach().numpy()
    # |q|^2 is the variance of the unit's input plus the square of its mean.
    length = np.sqrt((H**2).mean(axis=0))
    return value, float(length @ np.linalg.norm(V, axis=0))


def half_squared(output, y):
    return 0.5 * ((output - y.reshape(output.shape)) ** 2).sum(dim=1).mean()


def adam(network, X, y, *, steps, lr=0.03, alpha=ALPHA):
    """Train a batch-normalized network by Adam, weight decay in the loss."""
    X, y = torch.tensor(X), torch.tensor(y)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    decayed = [network[1].weight, network[1].bias, network[3].weight]
    for _ in range(steps):
        optimizer.zero_grad()
        decay = sum((w**2).sum() for w in decayed)
        (half_squared(network(X), y) + 0.5 * alpha * decay).backward()
        optimizer.step()
    return network


# --- agreement ------------------------------------------------------------------------------


def _two_outputs():
    X, Y = load_linnerud(return_X_y=True)
    return X, Y[:, :2]


def _binary():
    X, y = load_breast_cancer(return_X_y=True)
    return X[:150, :6], np.array(["bad", "good"])[y[:150]]


CASES = {
    "regression": (ConvexBNRegressor(ALPHA), diabetes),
    "two outputs": (ConvexBNRegressor(ALPHA), _two_outputs),
    "no intercept": (ConvexBNRegressor(ALPHA, fit_intercept=False), diabetes),
    "truncated": (ConvexBNRegressor(ALPHA, n_components=4), diabetes),
    "shrunk": (ConvexBNRegressor(ALPHA, shrinkage="auto"), diabetes),
    "two classes": (ConvexBNClassifier(0.05), _binary),
    "balanced": (ConvexBNClassifier(0.05, class_weight="balanced"), _binary),
    "class weights": (ConvexBNClassifier(0.05, class_weight={"bad": 3, "good": 1}), _binary),
    "three classes": (ConvexBNClassifier(0.05), lambda: load_iris(return_X_y=True)),
    "squared": (
        ConvexBNClassifier(0.05, loss="squared_error"),
        lambda: load_iris(return_X_y=True),
    ),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_estimators_own_certificate(case, weighted):
    estimator, data = CASES[case]
    X, y = data()
    weight = np.random.default_rng(0).integers(0, 3, len(X)) if weighted else None
    m = clone(estimator).set_params(tol=1e-3, random_state=0).fit(X, y, sample_weight=weight)
    c = certify(m, X, y, alpha=m.alpha, sample_weight=weight, random_state=1, effort=500)
    assert c.primal == pytest.approx(m.objective_, rel=1e-9)
    assert c.gap == pytest.approx(m.dual_gap_, abs=5e-3)
    assert c.violation == pytest.approx(m.certificate_.infeasibility, abs=0.02)
    assert c.kind == m.certificate_.kind
    assert c.gap == pytest.approx(1 - c.dual / c.primal)
    assert c.stationarity_gap <= c.gap + 1e-12


def test_exported_network_is_the_same_network():
    X, y = diabetes()
    m = optimum()
    direct = certify(m, X, y, alpha=ALPHA, random_state=0)
    settings = {"alpha": ALPHA, "shrinkage": m.shrinkage_, "random_state": 0}
    for fold in (False, True):
        c = certify(m.to_torch(fold=fold), X, y, **settings)
        assert c.primal == pytest.approx(direct.primal, rel=1e-12)
        assert c.dual == pytest.approx(direct.dual, rel=1e-6)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("C", [1, 2])
def test_torch_network_has_the_objective_of_its_train_mode(eps, C):
    X, y = diabetes()
    Y = np.column_stack([y, y[::-1]])[:, :C]
    network = bn_network(10, 7, C, eps=eps).eval()
    value, mass = loss_and_mass(network, X, Y, half_squared)
    c = certify(network.eval(), X, Y, alpha=ALPHA, effort=50, random_state=0)
    assert c.primal == pytest.approx(value + ALPHA * mass, rel=1e-9)


def test_weight_decay_in_the_units_of_y():
    X, y = diabetes()
    y = 50 * y + 7
    network = bn_network(10, 7)
    value, mass = loss_and_mass(network, X, y, half_squared)
    c = certify(network, X, y, alpha=3.0 / y.std(), effort=50, random_state=0)
    assert c.primal == pytest.approx(value + 3.0 * mass, rel=1e-9)


@pytest.mark.parametrize(("C", "n_classes"), [(1, 2), (2, 2), (3, 3)])
def test_classifier_network_has_the_objective_of_its_train_mode(C, n_classes, iris):
    X, y = iris
    X, y = X[y < n_classes], y[y < n_classes]
    network = bn_network(4, 6, C)
    if C == 1:
        logistic = torch.nn.functional.binary_cross_entropy_with_logits
        value, mass = loss_and_mass(network, X, y, lambda f, t: logistic(f[:, 0], t.double()))
    else:
        value, mass = loss_and_mass(network, X, y, torch.nn.functional.cross_entropy)
    c = certify(network, X, y, alpha=0.02, effort=50, random_state=0)
    assert c.primal == pytest.approx(value + 0.02 * mass, rel=1e-9)


def test_two_class_softmax_is_the_logistic_problem_with_less_decay():
    X, y = _binary()
    m = ConvexBNClassifier(0.05, shrinkage=0.0, tol=1e-3, random_state=0).fit(X, y)
    network = m.to_torch(fold=True)
    two = torch.nn.Sequential(network[0], network[1], torch.nn.Linear(m.n_neurons_, 2)).double()
    with torch.no_grad():
        for name in ("weight", "bias"):
            half = getattr(network[2], name) / 2
            getattr(two[2], name).copy_(torch.cat([-half, half]))
    c = certify(two, X, y, alpha=0.05 * np.sqrt(2), random_state=0)
    assert c.primal == pytest.approx(m.objective_, rel=1e-9)
    assert c.gap <= 3e-3
    assert c.stationary


def test_plain_network_and_mlp_are_the_function_they_compute():
    X, y = diabetes()
    mlp = MLPRegressor(hidden_layer_sizes=(5,), tol=1.0, random_state=0).fit(X, y)
    c = certify(mlp, X, y, alpha=ALPHA, effort=50, random_state=0)
    H = X @ mlp.coefs_[0] + mlp.intercepts_[0]
    mass = np.sqrt((H**2).mean(axis=0)) @ np.abs(mlp.coefs_[1][:, 0])
    loss = 0.5 * np.mean((mlp.predict(X) - y) ** 2)
    assert c.primal == pytest.approx(loss + ALPHA * mass, rel=1e-9)
    first, last = torch.nn.Linear(10, 5), torch.nn.Linear(5, 1)
    network = torch.nn.Sequential(first, torch.nn.ReLU(), last).double()
    with torch.no_grad():
        for layer, W, b in zip((first, last), mlp.coefs_, mlp.intercepts_, strict=True):
            layer.weight.copy_(torch.tensor(W.T))
            layer.bias.copy_(torch.tensor(b))
    same = certify(network, X, y, alpha=ALPHA, effort=50, random_state=0)
    assert same.primal == pytest.approx(c.primal, rel=1e-12)


def test_mlp_classifier():
    X, y = _binary()
    X = StandardScaler().fit_transform(X)
    mlp = MLPClassifier((5,), tol=0.1, random_state=0).fit(X, y)
    c = certify(mlp, X, y, alpha=0.05, effort=50, random_state=0)
    loss = -np.log(mlp.predict_proba(X))[np.arange(len(y)), (y == "good").astype(int)].mean()
    H = X @ mlp.coefs_[0] + mlp.intercepts_[0]
    mass = np.sqrt((H**2).mean(axis=0)) @ np.abs(mlp.coefs_[1][:, 0])
    assert c.primal == pytest.approx(loss + 0.05 * mass, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_not_modified(dtype, training):
    X, y = diabetes()
    network = bn_network(10, 5, dtype=dtype).train(training)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    certify(network, X, y, alpha=ALPHA, effort=20, random_state=0)
    after = network.state_dict()
    assert all(torch.equal(v, after[k]) and v.dtype == after[k].dtype for k, v in before.items())
    assert all(module.training is training for module in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_layers_without_bias_or_affine_parameters():
    X, y = diabetes()
    network = torch.nn.Sequential(
        torch.nn.Linear(10, 4, bias=False),
        torch.nn.BatchNorm1d(4, affine=False, track_running_stats=False),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 1, bias=False),
    ).double()
    value, mass = loss_and_mass(network, X, y, half_squared)
    y_rms = np.sqrt(np.mean(y**2))
    c = certify(network, X, y, alpha=ALPHA / y_rms, effort=50, random_state=0)
    assert c.primal == pytest.approx(value + ALPHA * mass, rel=1e-9)
    with_intercept = certify(
        network, X, y, alpha=ALPHA, effort=50, random_state=0, fit_intercept=True
    )
    assert with_intercept.primal == pytest.approx(c.primal, rel=1e-9)


def test_weights_are_repetitions_for_a_batch_normalized_network():
    X, y = diabetes()
    weight = np.random.default_rng(1).integers(0, 3, len(X))
    rows = np.repeat(np.arange(len(X)), weight)
    network = bn_network(10, 5)
    weighted = certify(network, X, y, alpha=ALPHA, sample_weight=weight, effort=50, random_state=0)
    repeated = certify(network, X[rows], y[rows], alpha=ALPHA, effort=50, random_state=0)
    assert weighted.primal == pytest.approx(repeated.primal, rel=1e-12)
    assert weighted.dual == pytest.approx(repeated.dual, rel=1e-9)


# --- what is bounded ------------------------------------------------------------------------


def test_adam_ends_between_the_bound_and_its_objective():
    X, y = diabetes()
    network = adam(bn_network(10, 20), X, y, steps=300)
    c = certify(network, X, y, alpha=ALPHA, random_state=0)
    best = optimum()
    assert c.primal >= best.certificate_.dual
    assert c.dual <= best.objective_ * (1 + 1e-9)
    assert 0 < c.gap < 0.3
    assert c.stationarity_gap <= c.gap


def test_stationary_points_and_others():
    X, y = diabetes()
    m = optimum()
    assert certify(m, X, y, alpha=ALPHA, random_state=0).stationary
    random = certify(bn_network(10, 20), X, y, alpha=ALPHA, random_state=0)
    assert not random.stationary
    assert random.stationarity_gap > 0.1
    moved = m.to_torch()
    with torch.no_grad():
        moved[3].weight[0, 0] *= 1.5
    assert not certify(moved, X, y, alpha=ALPHA, random_state=0).stationary
    shifted = m.to_torch()
    with torch.no_grad():
        shifted[3].bias += 0.3
    c = certify(shifted, X, y, alpha=ALPHA, random_state=0)
    assert c.primal == pytest.approx(m.objective_ + 0.3**2 / 2, rel=1e-3)
    assert not c.stationary


def test_a_converged_narrow_network_is_stationary_but_not_optimal():
    X, y = diabetes()
    network = bn_network(10, 1, eps=1e-12)
    lbfgs = torch.optim.LBFGS(
        network.parameters(), max_iter=500, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        lbfgs.zero_grad()
        decayed = [network[1].weight, network[1].bias, network[3].weight]
        decay = sum((w**2).sum() for w in decayed)
        value = half_squared(network(torch.tensor(X)), torch.tensor(y)) + 0.01 * decay
        value.backward()
        return value

    lbfgs.step(closure)
    c = certify(network, X, y, alpha=0.02, random_state=0)
    assert c.primal == pytest.approx(closure().item(), rel=1e-5)
    assert c.stationary
    assert c.gap > 0.05


def test_the_constant_network_is_stationary():
    X, y = diabetes()
    network = bn_network(10, 1)
    with torch.no_grad():
        network[3].weight.zero_()
        network[3].bias.zero_()
    c = certify(network, X, y, alpha=0.02, random_state=0)
    assert c.primal == pytest.approx(0.5)
    assert c.stationarity_gap == pytest.approx(0, abs=1e-9)
    assert c.gap > 0.1


@pytest.mark.parametrize("X", [np.ones((6, 2)), np.arange(6.0).reshape(1, 6).repeat(6, axis=0)])
def test_constant_features(X):
    y = np.arange(6.0)
    c = certify(bn_network(X.shape[1], 3), X, y, alpha=ALPHA, effort=20, random_state=0)
    assert c.kind == "exact"
    assert 0 <= c.gap < 1


@pytest.mark.parametrize("C", [1, 3])
def test_own_correlation_is_the_largest_over_the_networks_cones(C):
    rng = np.random.default_rng(3)
    problem = make_problem(rng.normal(size=(12, 3)), rng.normal(size=(12, C)), "squared", 0.01)
    neurons = random_neurons(problem, 6, rng)
    Lambda = problem.dual_point(problem.with_best_intercept(neurons)[1])
    active = problem.Z @ neurons.directions.T >= 0
    outputs = neurons.weights / np.linalg.norm(neurons.weights, axis=1, keepdims=True)
    sums = problem.Z.T @ (active * (Lambda @ outputs.T))
    cones = [cone_norm(problem.Z, active[:, j], sums[:, j]) for j in range(len(neurons))]
    turned = np.linalg.norm(Lambda.T @ hidden(problem, neurons.directions), axis=0)
    value, q = problem.own_correlation(neurons, Lambda)
    assert value == pytest.approx(max(*cones, turned.max()), rel=1e-9)
    attained = np.linalg.norm(Lambda.T @ hidden(problem, q[None]))
    assert attained >= value * (1 - 1e-9)
    assert largest_in_cones(problem.Z, active, sums)[0] == pytest.approx(max(cones), rel=1e-9)


def _with_unit(network, unit, size):
    """The folded network with one more hidden unit, balanced."""
    W, b = network[0].weight.detach().numpy(), network[0].bias.detach().numpy()
    V, c = network[-1].weight.detach().numpy(), network[-1].bias
    m = len(b) + 1
    wider = torch.nn.Sequential(
        torch.nn.Linear(W.shape[1], m), torch.nn.ReLU(), torch.nn.Linear(m, len(V))
    ).double()
    with torch.no_grad():
        wider[0].weight.copy_(torch.tensor(np.vstack([W, unit.weights])))
        wider[0].bias.copy_(torch.tensor(np.append(b, unit.offset)))
        wider[2].weight.copy_(torch.tensor(np.column_stack([V, size * unit.output])))
        wider[2].bias.copy_(c)
    return wider


@pytest.mark.parametrize("data", [diabetes, _two_outputs, lambda: load_iris(return_X_y=True)])
def test_the_direction_has_its_correlation_and_lowers_the_objective(data):
    X, y = data()
    classes = np.unique(y).tolist() if y.dtype.kind == "i" else []
    kind = ConvexBNClassifier if classes else ConvexBNRegressor
    m = kind(0.3, tol=1e-4, random_state=0).fit(X, y)
    alpha = 0.05
    network = m.to_torch(fold=True)
    c = certify(network, X, y, alpha=alpha, random_state=0)
    assert c.violation > 0.05
    F = network(torch.tensor(X)).detach().numpy()
    if classes:
        residual, scale = np.eye(3)[y] - m.predict_proba(X), 1.0
    else:
        y = y.reshape(len(y), -1)
        residual, scale = y - F, np.sqrt(y.var(axis=0).mean())
    residual = residual - residual.mean(axis=0)
    unit = np.maximum(X @ c.direction.weights + c.direction.offset, 0)
    correlation = residual.T @ unit / len(X)
    np.testing.assert_allclose(
        correlation / np.linalg.norm(correlation), c.direction.output, atol=0.02
    )
    assert np.linalg.norm(correlation) / (scale * alpha) - 1 == pytest.approx(c.violation, abs=0.02)
    after = certify(
        _with_unit(network, c.direction, 0.05 * scale), X, y, alpha=alpha, random_state=0
    )
    assert after.primal < c.primal


@pytest.mark.parametrize("data", [lambda: (diabetes()[0][:8], diabetes()[1][:8]), None])
def test_exact_where_it_can_be(data):
    X, y = data() if data else (diabetes()[0][:40, :2], diabetes()[1][:40])
    m = ConvexBNRegressor(0.02, tol=1e-4, random_state=0).fit(X, y)
    c = certify(m, X, y, alpha=0.02, random_state=0)
    assert c.kind == "exact"
    assert c.gap <= 2e-3
    network = bn_network(X.shape[1], 5)
    far = certify(network, X, y, alpha=0.02, random_state=0)
    assert far.kind == "exact"
    assert far.dual <= m.objective_ <= far.primal
    searched = certify(network, X, y, alpha=0.02, random_state=1, effort=2000)
    assert far.violation == pytest.approx(searched.violation, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_proves_of_a_wide_fit_with_several_outputs_what_the_fit_could(seed):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(5, 8)), rng.normal(size=(5, 3))
    m = ConvexBNRegressor(0.05, tol=1e-3, random_state=0).fit(X, Y)
    assert m.certificate_.kind == "exact"
    c = certify(m, X, Y, alpha=0.05, random_state=0)
    assert c.kind == "exact"
    assert c.primal == pytest.approx(m.objective_, rel=1e-9)
    assert c.gap <= 1e-3


def test_bounds_are_at_least_zero_and_gaps_at_most_one():
    X, y = diabetes()
    labels = (y > 0).astype(int)
    for scale in (1.0, 30.0):
        network = bn_network(X.shape[1], 5)
        with torch.no_grad():
            network[3].weight *= scale
        for target, alpha in ((y, 1e-4), (labels, 1e-5)):
            c = certify(network, X, target, alpha=alpha, random_state=0, effort=50)
            assert 0.0 <= c.dual <= c.primal
            assert 0.0 <= c.gap <= 1.0
            assert 0.0 <= c.stationarity_gap <= 1.0


def test_same_seed_same_answer_whatever_the_order_and_container():
    X, y = diabetes()
    network = bn_network(10, 5)
    order = np.random.default_rng(0).permutation(len(X))
    a = certify(network, X, y, alpha=ALPHA, effort=100, random_state=3)
    b = certify(network, pd.DataFrame(X[order]), y[order], alpha=ALPHA, effort=100, random_state=3)
    assert (a.gap, a.violation) == (b.gap, b.violation)


def test_in_words():
    X, y = diabetes()
    c = certify(optimum(), X, y, alpha=ALPHA, random_state=0)
    searched = "estimated, by an independent search of 50000 starts,"
    for words in (searched, "stationary", f"{c.primal:.6g}"):
        assert words in str(c)
    assert "not stationary" in str(certify(bn_network(10, 5), X, y, alpha=ALPHA, effort=20))


def test_has_the_fields_of_a_fit_and_more():
    X, y = diabetes()
    c = certify(optimum(), X, y, alpha=ALPHA, random_state=0, effort=400)
    fitted = optimum().certificate_
    assert isinstance(c, type(fitted))
    shared = ("primal", "dual", "gap", "infeasibility", "kind", "program", "n_verified", "n_hits")
    assert set(shared) | {"cautious_gap"} == set(vars(fitted)) < set(vars(c))
    assert c.program == fitted.program == "all arrangements"
    assert c.n_verified == 400
    assert 0 <= c.n_hits <= 400
    assert c.gap <= c.cautious_gap <= c.proved_gap == 1.0  # nothing can be proven here


@pytest.mark.parametrize(
    ("effort", "starts"), [("quick", 2000), ("normal", 10_000), ("thorough", 50_000), (70, 70)]
)
def test_effort_is_a_number_of_starts(effort, starts, capsys):
    X, y = diabetes()
    c = certify(optimum(), X, y, alpha=ALPHA, random_state=0, effort=effort, verbose=1)
    assert c.n_verified == starts
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == -(-starts // 5000)
    assert lines[-1].startswith(f"[certify] {starts} of {starts} starts: violation of ")
    assert not {"certified", "exact"} & set(" ".join([*lines, str(c)]).split())


def test_silent_by_default(capsys):
    X, y = diabetes()
    certify(optimum(), X, y, alpha=ALPHA, random_state=0, effort=20)
    assert capsys.readouterr().out == ""


# --- bad input ------------------------------------------------------------------------------


def sequential(*layers):
    return torch.nn.Sequential(*layers).double()


@pytest.mark.parametrize(
    ("network", "error", "words"),
    [
        (None, TypeError, "NoneType"),
        (ConvexBNRegressor, TypeError, "network must be"),
        (LinearRegression(), TypeError, "LinearRegression"),
        (make_pipeline(ConvexBNRegressor()), TypeError, "Pipeline"),
        (torch.nn.Linear(10, 1), TypeError, "Linear"),
        (ConvexBNRegressor(), NotFittedError, "not fitted"),
        (MLPRegressor(), NotFittedError, "not fitted"),
        (sequential(torch.nn.Linear(10, 1)), ValueError, r"Sequential of \(Linear\)"),
        (
            sequential(torch.nn.Linear(10, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)),
            ValueError,
            "Tanh",
        ),
        (sequential(*bn_network(10, 3), torch.nn.ReLU()), ValueError, "Linear, ReLU"),
        (
            sequential(torch.nn.Linear(10, 3), torch.nn.ReLU(), torch.nn.Linear(4, 1)),
            ValueError,
            "do not fit together",
        ),
        (bn_network(9, 3), ValueError, "X has 10 features, but the network expects 9"),
        (bn_network(10, 3, 2), ValueError, "2 outputs"),
    ],
)
def test_wrong_networks(network, error, words):
    with pytest.raises(error, match=words):
        certify(network, *diabetes(), alpha=ALPHA)


def test_wrong_fitted_estimators(iris):
    X, y = diabetes()
    gated = ConvexBNRegressor(ALPHA, activation="gated_relu", n_gates=5, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="gated_relu"):
        certify(gated, X, y, alpha=ALPHA)
    deep = MLPRegressor(hidden_layer_sizes=(3, 3), tol=1.0, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="one hidden layer"):
        certify(deep, X, y, alpha=ALPHA)
    tanh = MLPRegressor(hidden_layer_sizes=(3,), activation="tanh", tol=1.0).fit(X, y)
    with pytest.raises(ValueError, match="tanh"):
        certify(tanh, X, y, alpha=ALPHA)
    with pytest.raises(ValueError, match="log_loss"):
        certify(optimum(), X, y, alpha=ALPHA, loss="log_loss")
    X, y = iris
    three = ConvexBNClassifier(0.3, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="was trained on"):
        certify(three, X, y + 1, alpha=0.3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_and_outputs_that_are_not_finite(value):
    network = bn_network(10, 3)
    with torch.no_grad():
        network[0].weight[0, 0] = value
    with pytest.raises(ValueError, match="weights contain NaN or infinity"):
        certify(network, *diabetes(), alpha=ALPHA)
    with torch.no_grad():
        network[0].weight[0] = 0.0
        network[1].eps = 0.0
    with pytest.raises(ValueError, match="output on X is not finite"):
        certify(network, *diabetes(), alpha=ALPHA)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": np.nan}, "alpha"),
        ({"alpha": "1"}, "alpha"),
        ({"loss": "hinge"}, "loss"),
        ({"loss": "log_loss"}, "continuous"),
        ({"effort": 0}, "effort"),
        ({"effort": "much"}, "effort"),
        ({"verbose": "much"}, "verbose"),
        ({"n_components": 0}, "n_components"),
        ({"n_components": 3}, "depend on directions of X"),
        ({"shrinkage": 2.0}, "shrinkage"),
        ({"fit_intercept": "yes"}, "fit_intercept"),
        ({"fit_intercept": False}, "output bias"),
        ({"stationarity_tol": -1e-3}, "stationarity_tol"),
        ({"random_state": "seed"}, "random_state"),
        ({"device": "abacus"}, "device"),
        ({"sample_weight": -np.ones(150)}, "[Nn]egative"),
        ({"sample_weight": np.zeros(150)}, "non-zero number|zero for every sample"),
        ({"sample_weight": np.ones(3)}, "sample_weight"),
    ],
)
def test_wrong_parameters(options, words):
    with pytest.raises(ValueError, match=words):
        certify(bn_network(10, 3), *diabetes(), **{"alpha": ALPHA, **options})


@pytest.mark.parametrize(
    ("X", "y", "words"),
    [
        (np.zeros((0, 10)), np.zeros(0), "0 sample"),
        (np.full((3, 10), np.nan), np.arange(3.0), "NaN"),
        (np.ones((3, 10)), np.array([0.0, np.inf, 1.0]), "infinity"),
        (np.ones((3, 10)), np.zeros(4), "inconsistent"),
        (np.ones(10), np.zeros(10), "2D"),
        (np.ones((3, 10)), np.array(["a", "a", "a"]), "only one class"),
        (np.ones((3, 10)), np.array([1, 2, 3]), "pass loss='squared_error'"),
        (np.ones((3, 10)), np.array(["a", "b", "c"]), "needs 3"),
    ],
)
def test_wrong_data(X, y, words):
    with pytest.raises(ValueError, match=words):
        certify(bn_network(10, 3), X, y, alpha=ALPHA)
