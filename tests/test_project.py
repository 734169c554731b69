"""The package as a whole: imports, layering, documents and docstrings."""

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from numpydoc.validate import validate

import sklearn_convexbn
from sklearn_convexbn import solvers

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sklearn_convexbn"
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def run_python(code, *options):
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )


def test_import_loads_neither_torch_nor_cvxpy_nor_matplotlib():
    out = run_python(
        "import sys, sklearn_convexbn\n"
        "print([m for m in ('torch', 'cvxpy', 'matplotlib') if m in sys.modules])"
    )
    assert out.stdout.strip() == "[]"


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.S)


def test_readme_example_runs_as_written_and_is_about_ten_lines():
    (block,) = python_blocks(ROOT / "README.md")
    assert len(block.strip().splitlines()) <= 12
    out = run_python(block, "-W", "error")
    score, units = out.stdout.split()[:2]
    assert float(score) > 0.9
    assert int(units) > 0
    assert "within" in out.stdout


def test_solver_written_in_the_guide_works():
    blocks = python_blocks(ROOT / "docs" / "solvers.md")
    code = "\n".join(blocks) + (
        "\nfrom sklearn.datasets import load_iris"
        "\nX, y = load_iris(return_X_y=True)"
        "\nm = ConvexBNRegressor(0.03, activation='gated_relu', n_gates=10, max_iter=2000,"
        "\n    tol=0.01, solver=ProximalGradient(), random_state=0).fit(X[:, :2], X[:, 2])"
        "\nprint(m.certificate_.kind, m.dual_gap_)"
    )
    kind, gap = run_python(code, "-W", "error").stdout.split()
    assert kind == "exact"
    assert float(gap) <= 0.01


def levels():
    """Read the module map of CONTRIBUTING.md: module name -> level."""
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M)
    return {name: int(level) for level, names in rows for name in re.findall(r"`(\w+)`", names)}


def own_imports(path):
    """Yield the top-level modules of the package that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sklearn_convexbn"):
            rest = node.module.split(".")[1:]
            yield from [rest[0]] if rest else [alias.name for alias in node.names]


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_module_map_names_every_module_and_no_other():
    assert set(levels()) == {module_of(p) for p in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_imports_point_downwards(path):
    level, here = levels(), module_of(path)
    for other in own_imports(path):
        assert other == here or level[other] < level[here], f"{here} imports {other}"


def modules_imported(path):
    """Yield the modules of the package that a file imports where it is loaded, dotted."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sklearn_convexbn."):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_modules_import_each_other_within_a_folder():
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    arrows = {
        name: {other for other in modules_imported(path) if other in files and other != name}
        for name, path in files.items()
    }
    order = list(TopologicalSorter(arrows).static_order())  # raises CycleError, naming the circle
    assert len(order) == len(files)


def lines_of_code(function, text):
    """Return how many lines of a function are code: not blank, no comment, not the docstring."""
    first, *rest = function.body
    described = ast.get_docstring(function) is not None and rest
    body = rest[0].lineno if described else first.lineno
    head = range(function.lineno, first.lineno)
    lines = [*head, *range(body, function.end_lineno + 1)]
    return sum(not re.match(r"\s*(#|$)", text[line - 1]) for line in lines)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_functions_have_at_most_50_lines_of_code(path):
    text = path.read_text().splitlines()
    found = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
    ]
    assert [f.name for f in found if lines_of_code(f, text) > 50] == []


def arguments_and_fields(path):
    """Yield names of arguments and of fields of classes that a file defines, and their defaults."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args]
            without = [None] * (len(named) - len(node.defaults))
            yield from zip([a.arg for a in named], [*without, *node.defaults], strict=True)
            yield from zip([a.arg for a in node.kwonlyargs], node.kw_defaults, strict=True)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.value


def test_nothing_takes_for_granted_that_all_rows_are_here():
    """Sums over the rows of one process only are wrong, silently: no `shards` has a default."""
    found = [
        path.name
        for path in PACKAGE.rglob("*.py")
        for name, default in arguments_and_fields(path)
        if name == "shards" and default is not None
    ]
    assert found == []


FAMILIES = ("ConvexBN", "PathNet")


def public_objects():
    for name in (
        "alpha_max",
        "certified_radius",
        "certify",
        "conditioning",
        "convexbn_path",
        "export_int8",
        "lipschitz_bound",
        "replace_head",
        "row_shards",
        "show_versions",
    ):
        yield f"sklearn_convexbn.{name}"
    for name in (
        "ConvergenceDisplay",
        "FeatureWeightsDisplay",
        "RegularizationPathDisplay",
        "SpectrumDisplay",
    ):
        yield f"sklearn_convexbn.{name}"
        for method in ("from_estimator", "plot"):
            yield f"sklearn_convexbn.{name}.{method}"
    yield "sklearn_convexbn.Patches"
    kinds = [f"{family}{kind}" for family in FAMILIES for kind in ("Regressor", "Classifier")]
    for name in kinds:
        yield f"sklearn_convexbn.{name}CV"
        yield f"sklearn_convexbn.{name}CV.fit"
    for name in kinds:
        yield f"sklearn_convexbn.{name}"
        for method in ("fit", "predict", "to_torch"):
            yield f"sklearn_convexbn.{name}.{method}"
    for method in ("", ".fit", ".transform"):
        yield f"sklearn_convexbn.ConvexBNTransformer{method}"
    for method in ("predict_proba", "predict_log_proba", "decision_function"):
        yield f"sklearn_convexbn.ConvexBNClassifier.{method}"
    for _, class_name in solvers.REGISTRY.values():
        yield f"sklearn_convexbn.solvers.{class_name}"
    yield "sklearn_convexbn.solvers.run"


# Sections that would only repeat the class page; named return values, as scikit-learn has them.
NOT_ASKED_FOR = {"SA01", "EX01", "ES01", "GL08", "RT03", "PR07", "RT02"}


@pytest.mark.parametrize("name", list(public_objects()))
def test_public_docstrings_are_numpydoc(name):
    errors = [(c, text) for c, text in validate(name)["errors"] if c not in NOT_ASKED_FOR]
    assert errors == []


def test_version_is_that_of_the_changelog_and_the_citation():
    version = sklearn_convexbn.__version__
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert sections[0] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_show_versions_names_every_dependency(capsys):
    sklearn_convexbn.show_versions()
    printed = capsys.readouterr().out
    needed = re.findall(r'^    "([a-z-]+)>=', PYPROJECT.partition("optional")[0], flags=re.M)
    assert len(needed) == 6
    for name in ("python", "CUDA", *needed):
        assert re.search(rf"^ +{name}: \S", printed, flags=re.M), name
    assert f"sklearn-convexbn: {sklearn_convexbn.__version__}\n" in printed


def test_strict_type_checking_accepts_a_users_script():
    pytest.importorskip("mypy", reason="mypy comes with the extra lint")
    script = ROOT / "tests" / "typed_user.py"
    names = set(re.findall(r"\w+", script.read_text()))
    assert set(sklearn_convexbn.__all__) <= names
    options = ("--strict", "--follow-imports=silent", "--cache-dir", os.devnull)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_unknown_public_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="Simplex"):
        solvers.Simplex  # noqa: B018
    assert {"FISTA", "Pursuit", "CVXPY", "ClosedForm"} <= set(dir(solvers))
