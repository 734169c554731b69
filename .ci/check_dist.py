"""Check the wheel and the sdist in a folder, and use the wheel from an empty environment.

    python .ci/check_dist.py dist

The environment is new and has the wheel only; it is run outside the repository, and finds the
dependencies in the site-packages of the Python that runs this script. With `--dependencies` it
installs them afresh (several hundred MB).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Folders that only a working copy has.
NOT_SHIPPED = ("docs/_build", "docs/generated", ".venv", "build", "dist")

USE = """
import sys
from pathlib import Path
import sklearn_convexbn
from sklearn.datasets import load_iris
where = Path(sklearn_convexbn.__file__).resolve()
assert where.is_relative_to(Path(sys.prefix).resolve()), where
assert (where.parent / "py.typed").is_file()
X, y = load_iris(return_X_y=True)
model = sklearn_convexbn.ConvexBNClassifier(0.1, random_state=0).fit(X, y)
assert model.score(X, y) > 0.9, model.score(X, y)
sklearn_convexbn.show_versions()
"""


def one(folder: Path, pattern: str) -> Path:
    """Return the one file of a pattern."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"One {pattern} is expected in {folder}, there are {len(found)}.")
    return found[0]


def tracked() -> set[str]:
    """Return the files under version control, or, without it, those of this folder's sources."""
    run = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    files = run.stdout.splitlines()
    if run.returncode or not files:
        files = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py")]
        files = [f for f in files if not f.startswith(NOT_SHIPPED)]
    return {f for f in files if (ROOT / f).is_file()} - {".gitignore"}


def check_contents(wheel: Path, sdist: Path) -> None:
    """Compare what is in the archives with the sources."""
    sources = tracked()
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {name for name in sources if name.startswith("sklearn_convexbn/")}
    report("wheel", package, names)
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    report("sdist", sources, names - made)


def report(kind: str, expected: set[str], found: set[str]) -> None:
    """End the program if files are missing or should not be there."""
    missing, more = sorted(expected - found), sorted(found - expected)
    if missing or more:
        raise SystemExit(f"The {kind} lacks {missing} and has {more} besides.")
    print(f"{kind}: {len(found)} files, those of the sources")


def use(wheel: Path, dependencies: bool) -> None:
    """Install the wheel into an empty environment and fit an estimator there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        options = [] if dependencies else ["--no-deps", "--no-index"]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *options, str(wheel.resolve())], check=True, cwd=folder)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        if not dependencies:
            # As PYTHONPATH, and not as a .pth file: editable installs are not followed from there.
            environment["PYTHONPATH"] = sysconfig.get_paths()["purelib"]
        command = [str(python), "-W", "error", "-c", USE]
        subprocess.run(command, check=True, cwd=folder, env=environment)


def main() -> None:
    """Check contents, then use the wheel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dependencies", action="store_true")
    options = parser.parse_args()
    wheel, sdist = one(options.folder, "*.whl"), one(options.folder, "*.tar.gz")
    check_contents(wheel, sdist)
    use(wheel, options.dependencies)
    print(f"{wheel.name} works without the repository", file=sys.stderr)


if __name__ == "__main__":
    main()
