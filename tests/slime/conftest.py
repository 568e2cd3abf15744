"""The slime tests run against slime's own classes where there is a checkout (`make test-slime SLIME=FOLDER`).

Elsewhere, as in the default tests, against the stand-ins in slime_stand_ins.py, which keep slime's contract.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parent))

# What slime imports and does not call here: engines, the trainer, clients.
HEAVY = ("sglang", "sglang_router", "megatron", "aiohttp", "httpx", "pybase64", "pylatexenc", "wandb")
CHECKOUT = os.environ.get("KNAPSACK_RL_SLIME")


class _Empty(Loader):
    """Makes modules whose every attribute is a mock."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _mock  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to execute."""


def _mock(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock()


class _Heavy(MetaPathFinder):
    """Finds the heavy packages that are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, _Empty(), is_package=True) if name.partition(".")[0] in MISSING else None


MISSING = {name for name in HEAVY if find_spec(name) is None} if CHECKOUT else set()
if CHECKOUT:
    sys.path.insert(0, CHECKOUT)
    sys.meta_path.append(_Heavy())
else:
    import slime_stand_ins

    sys.modules |= slime_stand_ins.modules()
