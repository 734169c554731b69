"""Rows on two processes: the same networks as on one, and errors that all processes see.

The processes are started once for each part below, do one thing after another and write what
comes of it. A process that hangs is ended by a timeout, which fails the test.
"""

import json
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import sparse

import sklearn_convexbn
from sklearn_convexbn import ConvexBNRegressor, ConvexBNTransformer, replace_head, row_shards
from sklearn_convexbn.data import _decomposition, _rows
from sklearn_convexbn.fit import _training
from sklearn_convexbn.fit._automatic_alpha import first_alpha
from sklearn_convexbn.search import _search
from sklearn_convexbn.solvers import _pursuit
from sklearn_convexbn.support._sharding import ALL_HERE

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
#: Seconds that two processes may take, that each waits for the other, and where one is silent.
LIMIT, TIMEOUT, PATIENCE = 300, 60, 3


def data(k=2, n=60):
    """Return X, a target and weights, in an order that gives the processes different targets."""
    rng = np.random.default_rng(k)
    X = rng.standard_normal((n, k))
    f = np.maximum(X[:, 0], 0) - np.abs(X[:, -1]) + 0.3 * rng.standard_normal(n)
    order = np.argsort(f)
    return X[order], f[order], rng.integers(1, 4, n).astype(float)


def targets(f, X):
    return {
        "one output": f,
        "two outputs": np.c_[f, X[:, 0] ** 2],
        "two classes": np.where(f > 0, "yes", "no"),
        "three classes": np.digitize(f, [-0.8, 0.2]),
    }


def part(rank):
    """Unequal parts; the first has no row of the third class."""
    return slice(0, 20) if rank == 0 else slice(20, None)


#: Numbers of features, targets and parameters of fits that are the same on two processes. Their
#: tolerance is tight because sums in another order differ by rounding, which a fit that stops
#: earlier may turn into another of the networks within `tol` of the optimum.
CASES = {
    "squared": (2, "one output", {}),
    "no intercept": (2, "one output", {"fit_intercept": False, "alpha": 0.1}),
    "outputs": (1, "two outputs", {}),
    "clip": (2, "one output", {"clip": True}),
    "logistic": (2, "two classes", {}),
    "softmax": (1, "three classes", {}),
    "balanced": (1, "three classes", {"class_weight": "balanced", "alpha": 0.1}),
    "class weights": (1, "three classes", {"class_weight": {0: 2.0, 1: 0.5, 2: 1.0}, "alpha": 0.1}),
}


def model(target, **parameters):
    kind = "ConvexBNClassifier" if "classes" in target else "ConvexBNRegressor"
    values = {"alpha": 0.03, "tol": 1e-6, "random_state": 0, **parameters}
    return getattr(sklearn_convexbn, kind)(**values)


def case(name, here=slice(None)):
    """Return the attributes of a fit to some of the rows."""
    k, target, parameters = CASES[name]
    X, f, weights = data(k)
    y = targets(f, X)[target]
    # Refits of several outputs are less accurate than the tolerance here.
    with mock.patch.object(_pursuit, "MULTI_OUTPUT_TOLERANCE", 1e-7):
        fitted = model(target, **parameters).fit(X[here], y[here], weights[here])
    return attributes(fitted, X)


# ------------------------------------------------------------------------ what the processes do


def fits(rank):
    """Yield the name of a fit, and its attributes."""
    here = part(rank)
    for name in CASES:
        yield name, case(name, here)
    X, f, _ = data()
    loose = model("one", tol=1e-2, random_state=None, shrinkage="auto")
    yield "random", attributes(loose.fit(X[here], f[here]), X)
    wide = np.random.default_rng(0).standard_normal((len(X), 100))
    loose = model("one", tol=1e-2, alpha=0.1, n_components=5)
    yield "wide", attributes(loose.fit(wide[here], f[here]), wide)
    yield "noise", attributes(noisy_model().fit(X[here], noise(X)[here]), X)
    layer = ConvexBNTransformer(model("one")).fit(X[here], f[here])
    yield "transformer", attributes(layer.estimator_, X)
    _, head = replace_head(torch.nn.Identity(), X[here], f[here], estimator=model("one"))
    yield "head", attributes(head, X)
    yield from searches(here)


def noise(X):
    return np.random.default_rng(0).standard_normal(len(X))


def noisy_model():
    return model("one", alpha="auto", tol=1e-2)


def attributes(fitted, X):
    return {
        "objective": fitted.objective_,
        "kind": fitted.certificate_.kind,
        "prediction": fitted._raw_predict(X).sum(axis=0).tolist(),
        "singular_values": fitted.singular_values_.tolist(),
        "coefs": [a.sum() for a in fitted.coefs_],
        "shrinkage": fitted.shrinkage_,
        "alpha": fitted.alpha_,
        "range": np.array(getattr(fitted, "whitened_range_", [])).tolist(),
    }


def searches(here):
    """Yield fits whose searches are steered, as those of many rows are, and a randomized SVD."""
    X, f, wide = steered_data()
    with mock.patch.object(_search, "STEERING_ROWS", 60):
        yield "steered", attributes(model("one", tol=1e-2).fit(X[here], f[here]), X)
        with (
            mock.patch.object(_training, "COMPACT_NUMBERS", 10),
            mock.patch.object(_decomposition, "RANDOMIZED_SIZE", 10),
        ):
            fitted = model("one", tol=1e-2, n_components=4).fit(wide[here], f[here])
            yield "randomized", attributes(fitted, wide)
            with mock.patch.object(_rows, "DENSE_COLUMNS", 10):
                fitted.fit(sparse.csr_array(wide[here]), f[here])
            yield "sparse", attributes(fitted, wide)


def steered_data():
    X, f, _ = data(4, 150)
    noise = 0.1 * np.random.default_rng(0).standard_normal((len(X), 40))
    return X, f, np.hstack([3 * X, noise])


def refusals(rank):
    """Yield names of what is refused on all processes, and the errors."""
    X, f, _ = data()
    first = rank == 0

    def error(make, X=X, y=f):
        try:
            make().fit(X, y)
        except (TypeError, ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "none"

    def head_error():
        features = torch.nn.Identity() if first else torch.nn.Unflatten(1, (1, 2))
        try:
            replace_head(features, X, f, estimator=ConvexBNRegressor())
        except (ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"

    yield "alpha", error(lambda: ConvexBNRegressor(0.1 if first else 0.2))
    yield "invalid", error(lambda: ConvexBNRegressor(0.1 if first else -0.2))
    yield "features", error(ConvexBNRegressor, X=X[:, : 1 + rank])
    yield "outputs", error(ConvexBNRegressor, y=f if first else np.c_[f, f])
    yield "labels", error(lambda: model("classes"), y=f > 0 if first else np.where(f > 0, "a", "b"))
    yield "nan", error(ConvexBNRegressor, X=X if first else np.full_like(X, np.nan))
    yield "empty", error(ConvexBNRegressor, X=X[: 9 * rank], y=f[: 9 * rank])
    yield "seed", error(lambda: ConvexBNRegressor(random_state=np.random.RandomState(0)))
    yield "solver", error(lambda: ConvexBNRegressor(solver="fista"))
    yield "gated", error(lambda: ConvexBNRegressor(activation="gated_relu"))
    yield "cv", error(sklearn_convexbn.ConvexBNRegressorCV)
    yield "transformer", error(lambda: ConvexBNTransformer(ConvexBNRegressor() if first else None))
    yield "head", head_error()
    yield "nested", error(lambda: row_shards().__enter__())
    found = []
    thread = threading.Thread(target=lambda: found.append(error(ConvexBNRegressor)))
    thread.start()
    thread.join()
    yield "thread", found[0]
    yield "afterwards", error(lambda: ConvexBNRegressor(alpha=0.3, random_state=0))
    yield "one class", error(lambda: model("classes"), y=np.zeros(len(X), int))
    yield "out of step", error(ConvexBNRegressor)


class Ends:
    """Told of rounds; ends the second process in the third, as a machine that fails would."""

    def __init__(self, rank):
        self.rank, self.rounds = rank, 0

    def __call__(self):
        self.rounds += 1
        if self.rank == 1 and self.rounds == 3:
            os._exit(1)


def death(rank):
    """Yield the error that the first process gets while the second has ended."""
    from sklearn_convexbn.program import _problem

    ends, objective = Ends(rank), _problem.Problem.objective

    def counted(self, neurons):
        ends()
        return objective(self, neurons)

    _problem.Problem.objective = counted
    X, f, _ = data(4)
    try:
        model("one").fit(X[part(rank)], f[part(rank)])
    except RuntimeError as error:
        yield "death", f"{error}"


def silence(rank):
    """Yield the error that the first process gets while the second does not answer."""
    X, f, _ = data()
    try:
        if rank == 0:
            model("one").fit(X, f)
    except RuntimeError as error:
        yield "silence", f"{error}"
    if rank == 1:
        sys.stdin.read()  # until the test closes it


def work(task, rank, rendezvous):
    options = {"init_method": f"file://{rendezvous}", "rank": rank, "world_size": 2}
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT), **options)
    group = None
    if task == "silence":
        group = dist.new_group([0, 1], timeout=timedelta(seconds=PATIENCE))
    with row_shards(group):
        print(json.dumps(dict(globals()[task](rank))), flush=True)
    if task in ("death", "silence"):
        os._exit(0)  # the group cannot be taken down in step
    dist.destroy_process_group()


# ------------------------------------------------------------------------------------ the tests


def run(task, tmp_path, *, ends=(0, 1)):
    """Run a task on two processes; return what those of `ends` have written, one after another."""
    command = [sys.executable, "-W", "error", str(HERE), task]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "rendezvous")],
            text=True,
            env=environment,
            **options,
        )
        for rank in range(2)
    ]
    try:
        out = [processes[rank].communicate(timeout=LIMIT) for rank in ends]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for text, errors in out:
        assert text, errors
    return [json.loads(text.splitlines()[-1]) for text, _ in out]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return run("fits", tmp_path_factory.mktemp("fits"))


def test_all_processes_end_with_the_same_network(fitted):
    assert fitted[0] == fitted[1]


@pytest.mark.parametrize("name", CASES)
def test_network_is_that_of_one_process(fitted, name):
    found, expected = fitted[0][name], case(name)
    assert found["kind"] == expected["kind"] == "exact"
    assert found["objective"] == pytest.approx(expected["objective"], rel=1e-6)
    assert found["prediction"] == pytest.approx(expected["prediction"], rel=1e-2, abs=1e-2)
    assert found["singular_values"] == pytest.approx(expected["singular_values"])
    np.testing.assert_allclose(np.abs(found["range"]), np.abs(expected["range"]), rtol=1e-9)


@pytest.mark.parametrize("name", ["transformer", "head"])
def test_layers_are_those_of_one_process(fitted, name):
    X, f, _ = data()
    expected, found = attributes(model("one").fit(X, f), X), fitted[0][name]
    assert found["objective"] == pytest.approx(expected["objective"], rel=1e-6)
    assert found["prediction"] == pytest.approx(expected["prediction"], rel=1e-2, abs=1e-2)


def test_shrinkage_is_estimated_from_all_rows(fitted):
    X, f, _ = data()
    one = model("one", tol=1e-2, shrinkage="auto").fit(X, f)
    assert fitted[0]["random"]["shrinkage"] == pytest.approx(one.shrinkage_)


def test_noise_on_all_rows_raises_alpha(fitted):
    X, _, _ = data()
    one, found = noisy_model().fit(X, noise(X)), fitted[0]["noise"]
    assert found["alpha"] == one.alpha_ > first_alpha(len(X))
    assert found["objective"] == pytest.approx(one.objective_, rel=2e-2)


def test_singular_values_where_rows_are_fewer_than_columns(fitted):
    X = np.random.default_rng(0).standard_normal((60, 100))
    expected = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)[:59]
    assert fitted[0]["wide"]["singular_values"] == pytest.approx(expected)


def test_steered_searches_add_up_sums(fitted):
    X, f, _ = steered_data()
    with mock.patch.object(_search, "STEERING_ROWS", 60):
        expected = model("one", tol=1e-2).fit(X, f)
    assert fitted[0]["steered"]["objective"] == pytest.approx(expected.objective_, rel=2e-2)


@pytest.mark.parametrize("name", ["randomized", "sparse"])
def test_leading_directions_are_those_of_all_rows(fitted, name):
    _, f, X = steered_data()
    expected, found = model("one", tol=1e-2, n_components=4).fit(X, f), fitted[0][name]
    assert found["singular_values"] == pytest.approx(expected.singular_values_[:4])
    assert found["objective"] == pytest.approx(expected.objective_, rel=2e-2)


#: What the errors on the first and on the second process say.
REFUSED = {
    "alpha": ("The parameter alpha is not the same on all processes: 0.1 on process 0, 0.2 on",)
    * 2,
    "invalid": ("Process 1 of 2 does not take part. InvalidParameterError", "'alpha' parameter"),
    "features": ("The number of features is not the same on all processes: 1",) * 2,
    "outputs": ("The shape of a target is not the same on all processes: () on process 0, (2,)",)
    * 2,
    "labels": ("The kind of target is not the same on all processes: dtype 'b'",) * 2,
    "nan": ("Process 1 of 2 does not take part. ValueError: Input X contains NaN", "contains NaN"),
    "empty": ("Found array with 0 sample(s)", "Process 0 of 2 does not take part. ValueError"),
    "seed": ("Inside row_shards random_state must be an int or None",) * 2,
    "solver": ("the solver is the pursuit, for activation='relu'. Got solver='fista'",) * 2,
    "gated": ("the solver is the pursuit, for activation='relu'",) * 2,
    "cv": ("ConvexBNRegressorCV does not work on row shards",) * 2,
    "transformer": ("Process 1 of 2 does not take part. TypeError", "Got None"),
    "head": ("Process 1 of 2 does not take part. ValueError", "Got shape (60, 1, 2)"),
    "nested": ("This process is in row_shards already",) * 2,
    "thread": ("fit in the thread that has entered it",) * 2,
    "afterwards": ("none",) * 2,
    "one class": ("the data contains only one class",) * 2,
    "out of step": ("An earlier fit of row shards has failed on this process",) * 2,
}


def test_errors_are_clear_and_on_all_processes(tmp_path):
    found = run("refusals", tmp_path)
    for rank in range(2):
        assert set(found[rank]) == set(REFUSED)
        for name, expected in REFUSED.items():
            assert expected[rank] in found[rank][name], name


@pytest.mark.parametrize("task", ["death", "silence"])
def test_a_process_that_is_gone_or_silent_is_an_error_on_the_other(task, tmp_path):
    (found,) = run(task, tmp_path, ends=(0,))
    assert "Process 0 of 2 has lost touch with the others" in found[task]


def test_row_shards_needs_a_process_group():
    with pytest.raises(RuntimeError, match="row_shards needs the processes of torch"):
        row_shards().__enter__()


def test_where_all_rows_are_here_nothing_is_exchanged():
    a, keys = np.arange(3.0), np.arange(3, dtype=np.uint64)
    assert ALL_HERE.total(a) is a
    assert ALL_HERE.totals(a, 2.0) == (a, 2.0)
    assert ALL_HERE.joined(a) is ALL_HERE.agreed(a) is ALL_HERE.parts(a)[0] is a
    assert ALL_HERE.of_rows(keys) is ALL_HERE
    assert (ALL_HERE.count(3), ALL_HERE.maximum(2.0), ALL_HERE.offset(3)) == (3, 2.0, 0)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3])
