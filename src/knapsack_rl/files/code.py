"""Python files of a user, run as modules."""

from __future__ import annotations

import importlib.util
import os
import sys
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

# Begins the names of modules that `run_file` makes; tells errors of a user's file from ours.
RUN_FILE_PREFIX = "_knapsack_rl_file_"


def run_file(path: Path | str) -> ModuleType:
    """Run a Python file and return it as a module; it is run anew at every call.

    The module is in ``sys.modules`` under a name made from the whole path, so that files of the same name stay apart
    and no real module is hidden.

    Raises:
        ValueError: the file is missing, is no Python file, or fails when it is run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give the path from here ({Path.cwd()}), or the whole path")
    name = f"{RUN_FILE_PREFIX}{blake2b(os.fsencode(path.resolve()), digest_size=6).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file that can be run")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise ValueError(f"{path} failed when it was run: {type(error).__name__}: {error}") from error
    return module
