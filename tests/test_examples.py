"""The examples of the gallery: laid out alike, and the quick ones run without a warning.

The others run when the documentation is built, where an example that fails is an error.
"""

import ast
import gzip
import pickle
import runpy
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
#: Examples that take some seconds, and a line that each of them prints.
QUICK = {
    "plot_closed_form": "n_components = None: ClosedForm, 10 hidden units",
    "plot_convergence": "excess at most the gap",
    "plot_decision_boundaries": "three rings   ConvexBNClassifier",
    "plot_images": "digits: ",
    "plot_int8": "in 8 bits",
    "plot_path_network": "columns used: ",
    "plot_export": "certificate (exact)",
    "plot_wide_data": "n x d",
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


def test_images_are_read_as_torchvision_keeps_them(tmp_path, monkeypatch, shown):
    rng = np.random.default_rng(0)
    raw, batches = tmp_path / "MNIST" / "raw", tmp_path / "cifar-10-batches-py"
    raw.mkdir(parents=True)
    batches.mkdir()
    X, y = rng.integers(256, size=(6, 28, 28), dtype=np.uint8), np.arange(6, dtype=np.uint8)
    header = b"\0\0\x08\x03" + np.array([6, 28, 28], dtype=">i4").tobytes()
    (raw / "train-images-idx3-ubyte").write_bytes(header + X.tobytes())
    header = b"\0\0\x08\x01" + np.array([6], dtype=">i4").tobytes()
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + y.tobytes()))
    colour = rng.integers(256, size=(4, 32, 32, 3), dtype=np.uint8)
    for i in (0, 1):
        rows = colour[2 * i : 2 * i + 2].transpose(0, 3, 1, 2).reshape(2, -1)
        content = {b"data": rows, b"labels": [i, 9]}
        (batches / f"data_batch_{i + 1}").write_bytes(pickle.dumps(content))
    monkeypatch.setenv("IMAGE_DATA", str(tmp_path / "nothing"))
    readers = runpy.run_path(str(EXAMPLES / "plot_images.py"))
    assert readers["mnist"](tmp_path / "nothing") is None
    assert readers["cifar10"](tmp_path / "nothing") is None
    for found, expected in zip(readers["mnist"](tmp_path), (X, y), strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(readers["cifar10"](tmp_path), (colour, [0, 9, 1, 9]), strict=True):
        np.testing.assert_array_equal(found, expected)
