"""Both ends of the support range: what `make test-oldest` pins is what pyproject.toml declares."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("examples", "test")  # what `make test` and `make test-range` install


def declared():
    """Return the requirements of the package and of the extras the tests run with."""
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for extra in EXTRAS for line in extras[extra]]
    return [Requirement(line) for line in lines]


def only_version(requirement, operator):
    """Return the version of the one specifier with this operator."""
    (version,) = [s.version for s in requirement.specifier if s.operator == operator]
    return Version(version)


def pins(name):
    """Return name -> version of a constraints file of exact pins."""
    lines = re.sub(r"#.*", "", (ROOT / name).read_text()).splitlines()
    requirements = [Requirement(line) for line in lines if line.strip()]
    return {r.name: only_version(r, "==") for r in requirements}


def test_oldest_constraints_pin_exactly_the_declared_lower_bounds():
    oldest = pins("constraints-oldest.txt")
    for requirement in declared():
        assert oldest.get(requirement.name) == only_version(requirement, ">="), str(requirement)


def test_default_constraints_lie_in_the_declared_range():
    usual = pins("constraints.txt")
    assert "torch" in usual
    for requirement in declared():
        version = usual.get(requirement.name, only_version(requirement, ">="))
        assert version in requirement.specifier, str(requirement)


def test_installed_versions_lie_in_the_declared_range():
    for requirement in declared():
        found = metadata.version(requirement.name)
        assert requirement.specifier.contains(found, prereleases=True), f"{requirement}, {found}"


def test_oldest_python_of_the_makefile_is_the_declared_one():
    makefile = (ROOT / "Makefile").read_text()
    (oldest,) = re.findall(r"^OLDEST_PYTHON \?= python(\S+)$", makefile, flags=re.M)
    assert PROJECT["requires-python"] == f">={oldest}"
    assert f"Programming Language :: Python :: {oldest}" in PROJECT["classifiers"]
