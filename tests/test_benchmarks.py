"""What the benchmarks stand on: cells that a stopped run goes on from, tables, and the judge."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def path_of_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_store_goes_on_and_tries_failed_cells_again(tmp_path):
    from _suite.store import Store

    def store(**options):
        return Store(tmp_path / "table.json", ("data", "n"), {"limit": 3.0}, **options)

    first = store()
    first.add({"data": "a", "n": 1, "s": np.float64(0.5)}, {"command": "x"})
    other = store()  # another process that has begun before the next cell is there
    first.add({"data": "a", "n": 2, "failure": "ValueError: no"}, {"command": "x"})
    other.add({"data": "b", "n": 1, "grid": (1, 2)}, {"command": "y"})
    again = store()
    assert again.why_missing({"data": "a", "n": 1}) == ""
    assert again.why_missing({"data": "a", "n": 2}) == "failed: ValueError: no"
    assert again.why_missing({"data": "c", "n": 1}) == "not run"
    assert again.why_missing({"data": "b", "n": 1, "grid": (1, 2)}) == ""
    assert again.why_missing({"data": "b", "n": 1, "grid": (1, 3)}) == "run with another grid"
    again.add({"data": "a", "n": 2, "s": 1}, {"command": "y"})
    assert [cell.get("s") for cell in store().cells] == [0.5, 1, None]
    assert store().runs() == [{"command": "x"}, {"command": "y"}]


def test_store_does_not_take_cells_of_other_settings(tmp_path):
    from _suite.store import Store

    path = tmp_path / "table.json"
    Store(path, ("data",), {"limit": 3}).add({"data": "a"}, {})
    with pytest.raises(SystemExit, match=r"other settings: limit 3 \(now 4\)"):
        Store(path, ("data",), {"limit": 4})
    assert len(Store(path, ("data",), None).cells) == 1


@pytest.mark.parametrize(
    ("module", "table"),
    [
        *(("bench_fit", "Fit"), ("bench_fit", "Predict"), ("bench_cv", "CrossValidation")),
        *(("bench_limits", "Limits"), ("bench_int8", "Int8"), ("bench_gpu", "Devices")),
    ],
)
def test_kept_table_is_what_its_command_makes_of_its_cells(module, table, tmp_path, capsys):
    benchmark = getattr(importlib.import_module(module), table)()
    kept = BENCHMARKS / "results" / f"{benchmark.name}.json"
    shutil.copy(kept, tmp_path)
    assert benchmark.main(["--report", "--results", str(tmp_path)]) == 0
    report = (tmp_path / kept.name).with_suffix(".md").read_text()
    assert report == kept.with_suffix(".md").read_text()
    assert report in capsys.readouterr().out


@pytest.mark.parametrize("name", ["GatedObjective", "ListObjective"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_judge_gives_no_gap_at_the_optimum_and_a_gap_elsewhere(name, loss):
    from _suite import objectives
    from _suite.package import solve_on_gates

    kind = getattr(objectives, name)
    o = kind.of("diabetes", loss, 8).at(0.1)
    activation = "relu" if name == "ListObjective" else "gated_relu"
    program = {"loss": loss, "alpha": o.alpha, "activation": activation, "tol": 1e-7}
    gates, directions, weights = solve_on_gates(o.Z, o.y, o.gates, **program)
    S = np.zeros((2, o.masks.shape[1], o.Z.shape[1]))
    np.add.at(S, ((weights < 0).astype(int), gates), directions * np.abs(weights)[:, None])
    if name == "ListObjective":
        o = o.with_bound_of(S)
    else:
        S = S[0] - S[1]
    assert 0.0 <= o.judge(S).gap + 1e-12 <= 1e-5
    assert o.judge(1.1 * S).gap > 1e-4
    assert o.judge(S).violation <= 1e-9


def test_judge_moves_blocks_to_the_nearest_point_of_their_cone():
    from _suite.objectives import project

    rng = np.random.default_rng(0)
    A = rng.standard_normal((40, 4)) + np.array([3.0, 0, 0, 0])
    for s in rng.standard_normal((20, 4)):
        q = project(A, s)
        assert (A @ q).min() >= -1e-9
        assert abs(q @ (s - q)) <= 1e-9  # Moreau: the rest is orthogonal, and in the polar cone
        assert (s - q) @ project(A, rng.standard_normal(4)) <= 1e-9


@pytest.mark.parametrize("C", [1, 2])
def test_second_judge_finds_the_largest_correlation(C):
    from _suite.judge import largest_correlation

    from sklearn_convexbn.search._exact import largest_correlation as enumerated

    rng = np.random.default_rng(C)
    Z = np.column_stack([rng.standard_normal((40, 2)), np.ones(40)])
    Lambda = rng.standard_normal((40, C))
    found = largest_correlation(Z, Lambda, 2000, 0)
    assert found == pytest.approx(enumerated(Z, Lambda)[0], rel=1e-4)
    assert found <= enumerated(Z, Lambda)[0] * (1 + 1e-9)


@pytest.mark.parametrize("form", ["patches", "even or odd", "outputs"])
def test_second_judge_sees_the_gap_of_the_programs_own_search(form):
    from _suite.judge import judged_gap
    from _suite.package import DualPoint, own_model

    from bench_certificates import Problem, cut

    loss = {"patches": "softmax", "even or odd": "logistic", "outputs": "squared"}[form]
    problem = Problem("diabetes" if form == "outputs" else "digits", loss, 0.1, form=form, rows=60)
    X, y = problem.load()
    model = own_model(loss != "squared", alpha=0.1, tol=0.5, shrinkage=0.0, patches=problem.patches)
    point = DualPoint(lambda: model.fit(X, y))
    outputs = (model.predict if loss == "squared" else model.decision_function)(X)
    rows = X if problem.patches is None else cut(X)
    judged = judged_gap(loss, rows, y, outputs, 0.1, model.objective_, n_starts=2000)
    own = point.gap(point.searcher(0, True)(2000, 100))
    assert judged == pytest.approx(own, rel=0.02)
