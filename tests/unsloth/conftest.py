"""The Unsloth tests need an environment of their own (`make test-unsloth`): elsewhere they are not even collected."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

collect_ignore_glob = [] if find_spec("unsloth_zoo") else ["*.py"]

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "trl"), str(HERE.parent)]
