"""The slime tests run against the own classes of slime and of miles where there is a checkout.

`make test-slime SLIME=FOLDER MILES=FOLDER`; without, as in the default tests, against the stand-ins in
slime_stand_ins.py, which keep their contract.
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
CHECKOUTS = {name: os.environ.get(f"KNAPSACK_RL_{name.upper()}") for name in ("slime", "miles")}


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


MISSING = {name for name in HEAVY if find_spec(name) is None} if any(CHECKOUTS.values()) else set()
if MISSING:
    sys.meta_path.append(_Heavy())
for library, checkout in CHECKOUTS.items():
    if checkout:
        sys.path.insert(0, checkout)
    else:
        import slime_stand_ins

        sys.modules |= slime_stand_ins.modules(library)
