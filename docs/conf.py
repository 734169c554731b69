"""Sphinx configuration of the documentation; `make docs` builds it, every warning an error.

The build needs no network. With DOCS_ONLINE=1 it fetches the indexes of scikit-learn and others,
and names of theirs become links.
"""

import os
from pathlib import Path

import sklearn_convexbn
from sklearn_convexbn.estimators._base import BaseNetwork

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# Estimators shown in the gallery link to their pages, which lie beside it.
BaseNetwork._doc_link_template = "../api/{estimator_module}.{estimator_name}.html"

project = "sklearn_convexbn"
author = "the sklearn_convexbn developers"
copyright = f"2026, {author}"
version = release = sklearn_convexbn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",  # formulas are drawn without a network too
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]

# Links between pages and their sections are checked; the names of other packages are not known
# offline.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(sklearn|numpy|torch|matplotlib)\..*"),
    ("py:class", r"sklearn_convexbn\.program\._objective\.Objective"),  # the base of Problem
]
if os.environ.get("DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "sklearn": ("https://scikit-learn.org/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://pytorch.org/docs/stable", None),
    }

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

# Docstrings give types and shapes in words; class pages list methods by themselves.
autodoc_typehints = "none"
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "generated/gallery",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklearn_convexbn",),
    "reference_url": {"sklearn_convexbn": None},
    # plot_digits is what `make demo` runs. It takes longer than the others, and the gallery shows
    # its source only.
    "filename_pattern": r"plot_(?!digits)",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "min_reported_time": 1,
    "show_memory": False,
    "parallel": 2,
}

html_theme = "pydata_sphinx_theme"
html_title = project
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navigation_with_keys": False,
    "show_toc_level": 2,
}

#: Pages of the repository that the site shows too, under generated/.
REPOSITORY_PAGES = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
]
#: How links within the repository start, and what they are in the site.
LINKS = {
    "](../examples/)": "](/generated/gallery/index)",
    "](../benchmarks/": "](/generated/benchmarks/",
    "](benchmarks/": "](/generated/benchmarks/",
    "](docs/": "](/",
}


def copy_repository_pages(app):
    """Copy the pages above; files that have not changed stay, and are not built again."""
    for pattern in REPOSITORY_PAGES:
        for source in sorted(ROOT.glob(pattern)):
            target = HERE / "generated" / source.relative_to(ROOT)
            text = source.read_text(encoding="utf-8")
            if not target.is_file() or target.read_text(encoding="utf-8") != text:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")


def redirect_links(app, docname, source):
    """Let links to files of the repository lead to the pages of the site."""
    for start, replacement in LINKS.items():
        source[0] = source[0].replace(start, replacement)


def skip_foreign_members(app, what, name, obj, skip, options):
    """Leave out what scikit-learn or the standard library defines."""
    module = getattr(obj, "__module__", None) or "sklearn_convexbn"
    named_tuple_field = (obj.__doc__ or "").startswith("Alias for field number")
    return skip or named_tuple_field or not module.startswith("sklearn_convexbn")


def setup(app):
    """Connect the functions above to Sphinx."""
    app.connect("builder-inited", copy_repository_pages)
    app.connect("source-read", redirect_links)
    app.connect("autodoc-skip-member", skip_foreign_members)
