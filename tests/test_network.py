from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor
from sklearn_convexbn.data._canonical import TargetScaling
from sklearn_convexbn.fit._network import neurons_of_network, recover_network
from sklearn_convexbn.fit._training import Prepared
from sklearn_convexbn.solvers import make_solver
from tests.helpers import problem_and_whitening, random_neurons, solve, targets

SCALING = TargetScaling(np.array([3.0, -200.0]), 17.0)


def _data(n=30, d=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3.0, rng.normal(size=(n, 2))


def _setting(activation="relu", m=7, **options):
    """A random network on a random problem, with the rows it was stated on."""
    X, Y = _data()
    gates = 9 if activation == "gated_relu" else None
    problem, whitening = problem_and_whitening(
        X, Y, "squared", 0.1, activation=activation, gates=gates, **options
    )
    return X, problem, whitening, random_neurons(problem, m, np.random.default_rng(5))


def _order(neurons):
    """The largest mass first, as in a recovered network."""
    return np.argsort(-np.linalg.norm(neurons.weights, axis=1))


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
@pytest.mark.parametrize("target", [None, SCALING])
@pytest.mark.parametrize("options", [{}, {"n_components": 2}, {"shrinkage": 0.3}])
def test_recovered_network_computes_the_fit(activation, target, options):
    X, problem, whitening, neurons = _setting(activation, **options)
    network = recover_network(neurons, whitening, gates=problem.gates, target=target)
    expected = problem.fit_without_intercept(neurons) + neurons.intercept
    if target is not None:
        expected = target.offset + target.scale * expected
    output = network.forward(X)
    np.testing.assert_allclose(output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
@pytest.mark.parametrize("target", [None, SCALING])
@pytest.mark.parametrize("options", [{}, {"n_components": 2}, {"shrinkage": 0.3}])
def test_round_trip(activation, target, options):
    _, problem, whitening, neurons = _setting(activation, **options)
    network = recover_network(neurons, whitening, gates=problem.gates, target=target)
    back = neurons_of_network(network, whitening, gates=problem.gates, target=target)
    order = _order(neurons)
    np.testing.assert_allclose(back.directions, neurons.directions[order], atol=1e-9)
    np.testing.assert_allclose(back.weights, neurons.weights[order], atol=1e-9)
    if activation == "gated_relu":
        np.testing.assert_array_equal(back.gates, neurons.gates[order])
    np.testing.assert_allclose(back.intercept, neurons.intercept, atol=1e-9)
    np.testing.assert_allclose(
        problem.fit_without_intercept(back), problem.fit_without_intercept(neurons), atol=1e-9
    )
    assert back.mass == pytest.approx(neurons.mass)


def test_units_behind_gates_that_are_not_listed_are_left_out():
    _, problem, whitening, neurons = _setting("gated_relu")
    network = recover_network(neurons, whitening, gates=problem.gates)
    listed = problem.gates[:, 1:]
    back = neurons_of_network(network, whitening, gates=listed)
    kept = neurons.gates > 0
    assert 0 < kept.sum() < len(neurons)
    assert sorted(back.gates) == sorted(neurons.gates[kept] - 1)
    assert back.mass == pytest.approx(np.linalg.norm(neurons.weights[kept], axis=1).sum())


def test_gates_of_units_are_hyperplanes_in_feature_space():
    X, problem, whitening, neurons = _setting("gated_relu")
    network = recover_network(neurons, whitening, gates=problem.gates)
    on = X @ network.gates[:-1] + network.gates[-1] >= 0
    np.testing.assert_array_equal(on, problem.patterns[:, neurons.gates[_order(neurons)]])


def test_empty_network():
    X, problem, whitening, _ = _setting()
    empty = random_neurons(problem, 0, np.random.default_rng(0))
    network = recover_network(empty, whitening)
    output = network.forward(X)
    np.testing.assert_allclose(output, np.tile(empty.intercept, (30, 1)))
    assert len(neurons_of_network(network, whitening)) == 0


def test_scales_are_balanced_and_units_sorted_by_mass():
    _, _, whitening, neurons = _setting()
    network = recover_network(neurons, whitening, target=SCALING)
    norm, v = network.batch_norm, np.linalg.norm(network.coefs[1], axis=1)
    np.testing.assert_allclose(np.hypot(norm["scale"], norm["shift"]), v)
    assert (np.diff(v) <= 0).all()
    assert (v**2).sum() == pytest.approx(SCALING.scale * neurons.mass)


@pytest.mark.parametrize("options", [{}, {"n_components": 2}, {"shrinkage": 0.3}])
def test_batch_norm_statistics_are_those_of_the_rows(options):
    X, _, whitening, neurons = _setting(**options)
    network = recover_network(neurons, whitening)
    norm = network.batch_norm
    hidden = X @ (network.coefs[0] * np.sqrt(norm["var"]) / norm["scale"])
    np.testing.assert_allclose(hidden.mean(axis=0), norm["mean"])
    np.testing.assert_allclose(hidden.var(axis=0), norm["var"])
    normalized = (hidden - norm["mean"]) / np.sqrt(norm["var"])
    np.testing.assert_allclose(
        normalized * norm["scale"] + norm["shift"],
        X @ network.coefs[0] + network.intercepts[0],
        atol=1e-9,
    )


def _labels(name):
    X, y = {"diabetes": load_diabetes, "cancer": load_breast_cancer, "iris": load_iris}[name](
        return_X_y=True
    )
    return X[:150] if name == "diabetes" else X, y[:150] if name == "diabetes" else y


@cache
def _fitted(name):
    X, y = _labels(name)
    if name == "diabetes":
        return ConvexBNRegressor(
            0.03, shrinkage=0.0, solver="pursuit", tol=1e-3, random_state=0
        ).fit(X, y)
    return ConvexBNClassifier(0.03, shrinkage=0.0, solver="pursuit", tol=1e-2, random_state=0).fit(
        X, y
    )


def _output(model, X):
    """The network's output (n, C), before any softmax."""
    output = model.decision_function if hasattr(model, "classes_") else model.predict
    return output(X).reshape(len(X), -1)


def _torch_objective(module, model, X, y):
    """Mean loss plus weight decay over BN scale, BN shift and output weights, in torch alone."""
    _, norm, _, output = module
    f = module(X)
    if not hasattr(model, "classes_"):
        loss = 0.5 * ((f[:, 0] - y) ** 2).mean()
    elif f.shape[1] == 1:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(f[:, 0], y.to(f.dtype))
    else:
        loss = torch.nn.functional.cross_entropy(f, y)
    decayed = (norm.weight, norm.bias, output.weight)
    return loss + 0.5 * model.weight_decay_ * sum((w**2).sum() for w in decayed)


per_name = pytest.mark.parametrize("name", ["diabetes", "cancer", "iris"])


@per_name
def test_torch_network_in_train_mode_is_the_solution(name):
    X, y = _labels(name)
    model = _fitted(name)
    module = model.to_torch().train()
    tensor = torch.as_tensor(X)
    with torch.no_grad():
        output = module(tensor).numpy()
        objective = float(_torch_objective(module, model, tensor, torch.as_tensor(y)))
    expected = _output(model, X)
    size = np.abs(expected).max()
    np.testing.assert_allclose(output, expected, atol=1e-9 * size, rtol=0)
    assert objective == pytest.approx(model.objective_, rel=1e-9)
    assert [type(layer).__name__ for layer in module] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]


@per_name
@pytest.mark.parametrize("fold", [False, True])
def test_torch_network_in_eval_mode_predicts_new_rows(name, fold):
    X = _labels(name)[0]
    new = X + 0.1 * X.std(axis=0) * np.random.default_rng(0).normal(size=X.shape)
    model = _fitted(name)
    module = model.to_torch(fold=fold)
    assert not module.training
    assert len(module) == (3 if fold else 4)
    with torch.no_grad():
        output = module(torch.as_tensor(new)).numpy()
    expected = _output(model, new)
    np.testing.assert_allclose(output, expected, atol=1e-9 * np.abs(expected).max(), rtol=0)


@per_name
@pytest.mark.parametrize("train", [True, False])
def test_torch_network_in_single_precision(name, train):
    X = _labels(name)[0]
    model = _fitted(name)
    module = model.to_torch().float().train(train)
    with torch.no_grad():
        output = module(torch.as_tensor(X).float()).numpy()
    expected = _output(model, X)
    np.testing.assert_allclose(output, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("n", [150, 32])
def test_batches_in_train_mode_move_the_statistics_by_a_tenth(n):
    X = torch.as_tensor(_labels("diabetes")[0])
    module = _fitted("diabetes").to_torch()
    before = [module[1].running_mean.clone(), module[1].running_var.clone()]
    with torch.no_grad():
        module.train()(X[:n])
        batch = module[0](X[:n])
    # torch's default momentum; it tracks the unbiased variance.
    tracked = [module[1].running_mean, module[1].running_var]
    of_batch = [batch.mean(axis=0), batch.var(axis=0)]
    for old, new, now in zip(before, of_batch, tracked, strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)
    if n == len(X):
        torch.testing.assert_close(tracked[0], before[0])
        torch.testing.assert_close(of_batch[1] * 149 / 150, before[1])


@pytest.mark.parametrize(
    ("optimizer", "lr"), [("SGD", 1e-6), ("SGD", 1e-3), ("Adam", 1e-5), ("Adam", 1e-3)]
)
def test_gradient_steps_do_not_beat_the_certificate(optimizer, lr):
    X, y = (torch.as_tensor(a) for a in _labels("diabetes"))
    model = _fitted("diabetes")
    module = model.to_torch().train()
    steps = getattr(torch.optim, optimizer)(module.parameters(), lr=lr)
    values = []
    for _ in range(200):
        steps.zero_grad()
        objective = _torch_objective(module, model, X, y)
        objective.backward()
        values.append(float(objective.detach()))
        steps.step()
    certificate = model.certificate_
    assert values[0] == pytest.approx(certificate.primal, rel=1e-9)
    assert np.isfinite(values).all()
    assert len(set(values)) > 1
    assert min(values) >= certificate.dual


@pytest.mark.parametrize("fold", [False, True])
def test_unit_without_variance_is_exported(fold):
    X, _, whitening, neurons = _setting()
    neurons.directions[2] = [0.0, 0.0, 0.0, 0.0, 1.0]
    network = recover_network(neurons, whitening)
    assert (network.batch_norm["scale"] == 0).sum() == 1
    assert all(np.isfinite(a).all() for a in network.batch_norm.values())
    expected = network.forward(X)
    for precision, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        for train in (False, True):
            module = network.to_torch(fold=fold)
            module = module.to(precision).train(train)
            with torch.no_grad():
                output = module(torch.as_tensor(X).to(precision)).numpy()
            np.testing.assert_allclose(output, expected, atol=tolerance * np.abs(expected).max())


def test_gradients_of_a_unit_without_variance_are_finite():
    X, _, whitening, neurons = _setting()
    neurons.directions[2] = [0.0, 0.0, 0.0, 0.0, 1.0]
    network = recover_network(neurons, whitening)
    module = network.to_torch().train()
    module(torch.as_tensor(X)).sum().backward()
    assert all(torch.isfinite(w.grad).all() for w in module.parameters())


@pytest.mark.parametrize("fold", [False, True])
def test_network_without_units_is_exported(fold):
    X, y = _labels("diabetes")
    model = ConvexBNRegressor(1e3, random_state=0).fit(X, y)
    assert model.n_neurons_ == 0
    module = model.to_torch(fold=fold)
    for train in (False, True):
        with torch.no_grad():
            output = module.train(train)(torch.as_tensor(X))[:, 0].numpy()
        np.testing.assert_allclose(output, y.mean())


def test_gated_network_is_not_exported():
    X, y = _labels("diabetes")
    model = ConvexBNRegressor(
        0.3, activation="gated_relu", solver="cvxpy", n_gates=5, random_state=0, tol=1e-4
    ).fit(X, y)
    with pytest.raises(ValueError, match="to_torch needs activation='relu'"):
        model.to_torch()


def test_warm_start_from_a_network_is_its_own_solution():
    X, Y = _data()
    problem, whitening = problem_and_whitening(X, Y, "squared", 0.1)
    result = solve(problem, "pursuit", tol=1e-3)
    network = recover_network(result.neurons, whitening)
    back = neurons_of_network(network, whitening)
    assert problem.objective(back) == pytest.approx(result.certificate.primal, rel=1e-9)
    assert solve(problem, "pursuit", tol=2e-3, start=back).n_iter == 1


@pytest.mark.parametrize(("loss", "C"), [("squared", 1), ("softmax", 3)])
def test_another_whitening_expresses_a_network_up_to_rounding(loss, C):
    X, _ = _data()
    Y = targets(np.random.default_rng(0), 30, loss, C)
    problem, whitening = problem_and_whitening(X, Y, loss, 0.1)
    neurons = random_neurons(problem, 5, np.random.default_rng(1))
    network = recover_network(neurons, whitening)
    weights = np.random.default_rng(2).uniform(0.5, 2.0, size=30)
    other, other_whitening = problem_and_whitening(X, Y, loss, 0.1, weights=weights)
    back = neurons_of_network(network, other_whitening)
    np.testing.assert_allclose(
        other.fit_without_intercept(back), problem.fit_without_intercept(neurons), atol=1e-9
    )


def test_a_network_beyond_the_float_range_is_not_published():
    _, problem, whitening, _ = _setting()
    solver = make_solver("pursuit")
    result = solve(problem, solver, tol=0.1)
    tiny = replace(whitening, scales=whitening.scales * 1e-310)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="hidden weights are not fin"):
        Prepared(problem, tiny, None, solver).trained(result)
    trained = Prepared(problem, whitening, None, solver).trained(result)
    assert np.isfinite(trained.network.coefs[0]).all()
