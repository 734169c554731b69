"""Three hundred small messy problems; `tests/fuzz.py` draws them, and any number more."""

import pytest

from sklearn_convexbn.solvers import REGISTRY
from tests.fuzz import draw, judge


@pytest.mark.parametrize("first", range(0, 300, 10))
def test_messy_problems(first):
    verdicts = [judge(seed) for seed in range(first, first + 10)]
    assert [(v.faults, str(v.case)) for v in verdicts if v.faults] == []


@pytest.mark.parametrize("seed", [874])
def test_cases_that_have_failed_among_more(seed):
    assert judge(seed).faults == {}


def test_a_seed_is_the_whole_case():
    assert str(draw(7)) == str(draw(7))
    assert (draw(7).X == draw(7).X).all()
    assert len({str(draw(seed)) for seed in range(20)}) == 20


def test_cases_are_of_all_kinds():
    kinds = {(name, kind) for seed in range(300) for name, kind in draw(seed).kinds.items()}
    assert len({kind for name, kind in kinds if name == "X"}) == 10
    assert len({kind for name, kind in kinds if name == "y"}) == 9
    assert len({kind for name, kind in kinds if name == "weights"}) == 4
    programs = [kind for name, kind in kinds if name == "program"]
    words = ["gated_relu", "relu list", "auto", *REGISTRY, "log_loss", "squared_error"]
    for word in set(words) - {"closed_form", "pursuit"}:  # those "auto" takes
        assert any(word in program for program in programs)
    assert {len(draw(seed).X) for seed in range(300)} >= {3, 60}
