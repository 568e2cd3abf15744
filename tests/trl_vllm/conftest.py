"""TRL with a real vLLM engine inside the process, on a CPU: `make test-vllm`, in an environment of its own.

Do not name this folder `vllm`: tests/ is on the import path, where such a folder passes for the package and TRL breaks.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# Other environments have no vLLM and need not hear of these tests.
collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; otherwise a share of the machine's memory
sys.path.insert(0, str(Path(__file__).parents[1] / "trl"))  # the small world that these tests share with those of TRL
