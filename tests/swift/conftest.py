"""Runs of ms-swift need an environment of their own (`make test-swift`): elsewhere they are not even collected."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# `tests/swift` looks like a package of that name; dacite is one that ms-swift needs.
collect_ignore = [] if find_spec("swift") and find_spec("dacite") else ["test_swift.py"]

os.environ |= {
    "USE_HF": "1",  # no ModelScope hub
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
sys.path.insert(0, str(Path(__file__).parent))
