"""The Tinker tests need an environment of their own (`make test-tinker`): elsewhere they are not even collected."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

collect_ignore_glob = [] if find_spec("tinker_cookbook") else ["*.py"]

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TINKER_API_KEY": "tml-none",
    "TQDM_DISABLE": "1",
}
sys.path.insert(0, str(Path(__file__).parent))
