"""The axolotl tests need an environment of their own (`make test-axolotl`): elsewhere they are not even collected."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

# Asked for by its distribution, because this folder is named axolotl.
try:
    version("axolotl")
    collect_ignore_glob = []
except PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]

os.environ |= {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
