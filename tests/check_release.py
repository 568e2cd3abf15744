"""Checks of what `make release-check` has built: names, version, contents, metadata, and a fresh install.

python tests/check_release.py dist
"""

from __future__ import annotations

import argparse
import email
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
PACKAGES = {"knapsack_rl", "knapsack_arena"}
IN_SOURCE = {"src", "tests", "docs", "examples", "benchmarks", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"}


def version_faults(root: Path = ROOT, final: bool = False) -> Iterator[str]:
    """Places that name another version than the package; with ``final``, a changelog that calls it unreleased."""
    [version] = re.findall(r'^__version__ = "(.+)"', (root / "src/knapsack_rl/__init__.py").read_text(), re.MULTILINE)
    changelog = re.search(r"^## \[(.+?)\] - (.+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    if changelog is None or changelog[1] != version:
        yield f"CHANGELOG.md begins with {changelog and changelog[1]}, and the package is {version}"
    elif final and not re.fullmatch(r"\d{4}-\d\d-\d\d", changelog[2]):
        yield f"CHANGELOG.md has the date {changelog[2]!r} for {version}: write the day of the release"
    cited = re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited is None or cited[1] != version:
        yield f"CITATION.cff names version {cited and cited[1]}, and the package is {version}"


def built_faults(folder: Path) -> Iterator[str]:
    """What is wrong with the wheel and the source archive in a folder."""
    wheels, archives = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(archives) != 1:
        yield f"{folder} holds {len(wheels)} wheels and {len(archives)} archives: remove what is old"
        return
    with ZipFile(wheels[0]) as wheel:
        names = wheel.namelist()
        tops = {name.partition("/")[0] for name in names}
        if {top for top in tops if not top.endswith(".dist-info")} != PACKAGES:
            yield f"the wheel holds {', '.join(sorted(tops))}"
        for wanted in ("knapsack_rl/py.typed", "knapsack_arena/py.typed", "licenses/LICENSE", "entry_points.txt"):
            if not any(name.endswith(wanted) for name in names):
                yield f"the wheel has no {wanted}"
        metadata = email.message_from_bytes(wheel.read(next(name for name in names if name.endswith("/METADATA"))))
    if metadata["Version"] not in wheels[0].name or metadata["Version"] not in archives[0].name:
        yield f"the names of the files do not hold the version {metadata['Version']}"
    needed = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    if [re.match(r"[\w-]+", line)[0] for line in needed] != ["numpy"]:  # type: ignore[index]
        yield f"the core needs {needed}: it should need numpy only"
    with tarfile.open(archives[0]) as archive:
        inside = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    if missing := IN_SOURCE - inside:
        yield f"the source archive lacks {', '.join(sorted(missing))}"


def install_faults(wheel: Path) -> Iterator[str]:
    """What goes wrong in an empty environment, where numpy comes from the package index."""
    with tempfile.TemporaryDirectory() as place:
        venv.create(place, with_pip=True)
        scripts = Path(place) / ("Scripts" if sys.platform == "win32" else "bin")
        (Path(place) / "rates.csv").write_text("id,p\na,0.5\nb,0.1\n")
        for words in (
            [scripts / "python", "-m", "pip", "install", "--quiet", wheel.resolve()],
            [scripts / "knapsack-rl", "--version"],
            [scripts / "knapsack-rl", "allocate", "rates.csv"],
        ):
            done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
            if done.returncode:
                yield f"{' '.join(map(str, words))} failed: {(done.stderr or done.stdout).strip()}"
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--final", action="store_true", help="the changelog must name the day of the release")
    given = parser.parse_args()
    found = [*version_faults(final=given.final), *built_faults(given.folder)]
    if not found:
        found += install_faults(next(given.folder.glob("*.whl")))
    print("\n".join(found) or "version, contents, metadata and a fresh install: no fault")
    sys.exit(bool(found))
