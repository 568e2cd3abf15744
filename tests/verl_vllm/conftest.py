"""verl's real trainer with verl's own vLLM server, on a CPU: `make test-verl-vllm`, in an environment of its own.

Do not name this folder `vllm`: tests/ is on the import path, where such a folder passes for the package.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# Other environments have no vLLM or no verl; the second is tested by Ray, because a folder here is named verl.
collect_ignore_glob = [] if find_spec("vllm") and find_spec("ray") else ["test_*.py"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by default a share of the machine's memory
sys.path.insert(0, str(Path(__file__).parents[1] / "verl"))  # the package ``world`` of the tests of verl
