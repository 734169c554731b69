"""Pages of the documentation: their code prints what they show, their lists are whole."""

import re
from pathlib import Path

import pytest

import sklearn_convexbn
from sklearn_convexbn import losses, solvers

DOCS = Path(__file__).resolve().parents[1] / "docs"
EXECUTED = ["add_a_loss", "conditioning", "depth", "images", "index", "install", "quickstart"]
EXECUTED += ["robustness", "wide_data"]
NUMBER = r"-?\d+\.?\d*(?:e[-+]?\d+)?"


def blocks(page):
    """Yield language, first line and text of a page's fenced blocks."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.M | re.S):
        yield match[1], text.count("\n", 0, match.start(2)), match[2]


def assert_same_output(printed, shown):
    """Words must agree, numbers to 10 %: solvers may end at another network within `tol`."""
    assert re.sub(NUMBER, "#", printed).split() == re.sub(NUMBER, "#", shown).split()
    numbers = [[float(x) for x in re.findall(NUMBER, text)] for text in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.1)


@pytest.mark.parametrize("page", EXECUTED)
def test_code_runs_in_order_and_prints_what_the_page_shows(page, capsys):
    namespace, printed = {"__name__": page}, ""
    for language, line, text in blocks(page):
        if language == "python":
            code = compile("\n" * line + text, DOCS / f"{page}.md", "exec")
            exec(code, namespace)
            printed = capsys.readouterr().out
        elif language == "text":
            assert_same_output(printed, text)


def test_api_page_lists_every_public_name():
    listed = set(re.findall(r"^   ([\w.]+)$", (DOCS / "api.md").read_text("utf-8"), flags=re.M))
    public = {f"solvers.{name}" for name in solvers.__all__}
    public |= {f"losses.{name}" for name in losses.__all__}
    public |= {name for name in sklearn_convexbn.__all__ if name != "__version__"}
    assert public <= listed


def test_every_page_is_in_a_table_of_contents():
    pages = {path.stem: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    tables = re.findall(r"^```{toctree}\n(.*?)^```$", "\n".join(pages.values()), flags=re.M | re.S)
    assert set(pages) - {"index"} <= set(" ".join(tables).split())


def texts():
    """Yield what users read: README, pages, benchmarks' page and examples."""
    root = DOCS.parent
    yield from (root / "README.md", root / "benchmarks" / "README.md")
    yield from sorted(DOCS.glob("*.md"))
    yield from sorted((root / "examples").glob("*.py"))


@pytest.mark.parametrize("path", list(texts()), ids=lambda path: path.stem)
def test_no_estimate_is_called_certified_or_exact(path):
    text = path.read_text("utf-8")
    # Gaps on fixed gates are bounded rigorously; and the page that says what the word stands for.
    rigorous = ('the line says "certified"', "certified relative gap of 1e-3 and 1e-5 on the gated")
    for words in rigorous:
        text = text.replace(words, "")
    assert not re.findall(r"\bcertif(?:ied|ies|ying)\b.*", text, flags=re.I)
    estimate = r"estimate\w*|by a search|independent search|pursuit's (?:gap|bound)"
    assert not re.findall(rf"\b(?:exact|certified),? (?:{estimate})", text, flags=re.I)
    assert not re.findall(rf"\b(?:{estimate}) (?:is|are) (?:exact|certified)", text, flags=re.I)
