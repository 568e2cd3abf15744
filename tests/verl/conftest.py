"""The verl tests need an environment of their own (`make test-verl`): verl and TRL do not run in the same one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

# Asked of Ray, because this very folder is called verl.
if importlib.util.find_spec("ray") is None:
    collect_ignore_glob = ["test_*.py"]
