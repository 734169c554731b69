"""The examples of the gallery: laid out alike, and the quick ones run without a warning.

The others run when the documentation is built, where an example that fails is an error.
"""

import ast
import runpy
import sys
from pathlib import Path

import matplotlib
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
#: Examples that take some seconds, and a line that each of them prints.
QUICK = {
    "plot_closed_form": "n_components = None: ClosedForm, 10 hidden units",
    "plot_convergence": "excess at most the gap",
    "plot_decision_boundaries": "three rings   ConvexBNClassifier",
    "plot_export": "certificate (exact)",
    "plot_replace_head": "Adam's objective is",
    "plot_one_dimensional": "certificate (exact)",
}

#: Examples that the gallery shows and does not run.
STARTED_OTHERWISE = {"distributed"}


@pytest.fixture
def shown(monkeypatch):
    """Count the figures that are shown, and close them."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures = []

    def show():
        figures.extend(plt.get_fignums())
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    return figures


@pytest.mark.parametrize("name", QUICK)
def test_quick_example_runs_and_shows_its_figures(name, shown, capsys, monkeypatch):
    import matplotlib.pyplot as plt

    path = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert QUICK[name] in capsys.readouterr().out
    assert len(shown) == path.read_text(encoding="utf-8").count("plt.show()")
    assert not plt.get_fignums(), "a figure was made after the last plt.show()"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_example_is_laid_out_for_the_gallery(path):
    assert path.name.startswith("plot_") or path.stem in STARTED_OTHERWISE
    tree = ast.parse(path.read_text(encoding="utf-8"))
    title, underline, blank, *text = ast.get_docstring(tree).splitlines()
    assert underline == "=" * len(title)
    assert blank == ""
    assert text
