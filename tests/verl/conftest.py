"""The verl tests need a separate environment (`make test-verl`): verl and TRL cannot be installed in the same one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

# Tested by the queue that the verl extra brings, because this folder is named verl.
if importlib.util.find_spec("transfer_queue") is None:
    collect_ignore_glob = ["test_*.py"]
