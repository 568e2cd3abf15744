"""The parts of `make release-check` that need no build: they are checked on every change."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from zipfile import ZipFile

from check_release import ROOT, built_faults, version_faults


def test_every_place_names_the_version_of_the_package() -> None:
    assert list(version_faults()) == []


def test_another_version_is_found(tmp_path: Path) -> None:
    for name in ("CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "src/knapsack_rl").mkdir(parents=True)
    (tmp_path / "src/knapsack_rl/__init__.py").write_text('__version__ = "9.9.9"\n')
    assert len(list(version_faults(tmp_path))) == 2
    (tmp_path / "CITATION.cff").write_text("version: 9.9.9\n")
    (tmp_path / "CHANGELOG.md").write_text("## [9.9.9] - unreleased\n")
    assert list(version_faults(tmp_path)) == []
    assert "write the day of the release" in next(version_faults(tmp_path, final=True))
    (tmp_path / "CHANGELOG.md").write_text("## [9.9.9] - 2026-11-30\n")
    assert list(version_faults(tmp_path, final=True)) == []


def test_a_wheel_with_too_much_or_too_little_is_found(tmp_path: Path) -> None:
    assert "0 wheels" in next(built_faults(tmp_path))
    with tarfile.open(tmp_path / "knapsack_rl-1.0.tar.gz", "w:gz") as archive:
        archive.add(ROOT / "LICENSE", "knapsack_rl-1.0/LICENSE")
    with ZipFile(tmp_path / "knapsack_rl-1.0-py3-none-any.whl", "w") as wheel:
        for name in ("tests/x.py", "knapsack_rl/__init__.py"):
            wheel.writestr(name, "")
        wheel.writestr("knapsack_rl-1.0.dist-info/METADATA", "Version: 2.0\nRequires-Dist: torch\n")
    faults = list(built_faults(tmp_path))
    assert any("the wheel holds" in fault for fault in faults)
    assert any("no knapsack_arena/py.typed" in fault for fault in faults)
    assert any("2.0" in fault for fault in faults)
    assert any("numpy only" in fault for fault in faults)
    assert any("archive lacks" in fault for fault in faults)
