"""A rule of somebody's own: ``path/to/file.py:name``, wherever a name of an entrant is asked for."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs import PosteriorBeliefs
from knapsack_rl.entrants import ENTRANTS, Setting, make_strategy
from knapsack_rl.strategy import OneRound, Strategy

_ALLOCATOR = ("plan", "observe", "save", "load")
_STRATEGY = ("step", "save", "load")


def resolve(name_or_path: str, setting: Setting) -> Strategy:
    """The entrant of this name, or the rule in this file.

    Raises:
        ValueError: neither; the message says what there is.
    """
    if name_or_path in ENTRANTS:
        return make_strategy(name_or_path, setting)
    if ".py" in name_or_path:
        return load_rule(name_or_path, setting)
    raise ValueError(
        f"there is no rule {name_or_path!r}: choose from {', '.join(ENTRANTS)}, or give one of your own as FILE.py:NAME"
    )


def load_rule(path_and_name: str, setting: Setting) -> Strategy:
    """A new strategy of what a Python file defines under a name.

    The file is run anew at every call, so that no two strategies share what they learn. It may import its neighbours
    only if they are installed, or on ``PYTHONPATH``.

    Args:
        path_and_name: ``path/to/file.py:name``. The name may be of

            - a `Rule`: a function ``(forecast, budget, low, high) -> Offer``, or an instance with such a ``__call__``.
              It gets our beliefs, with the setting's half-life and limits on a prompt's count;
            - an `Allocator` (``plan``, ``observe``, ``save``, ``load``) or a `Strategy` (``step``, ``save``, ``load``):
              an instance, or a class. A class is called without arguments, or with ``setting`` if it has a parameter of
              that name.
        setting: what every entrant is told.

    Raises:
        ValueError: a file that is missing or fails, a name that it lacks, or something that is none of these.
    """
    path, _, name = path_and_name.rpartition(":")
    if not path.endswith(".py") or not name:
        raise ValueError(f"{path_and_name!r} does not name a rule: write path/to/file.py:name")
    module = run_file(Path(path))
    if not hasattr(module, name):
        raise ValueError(f"{path} has no {name!r}; it has {', '.join(_public(module)) or 'nothing of its own'}")
    return _strategy(getattr(module, name), f"{path}:{name}", setting)


def run_file(path: Path) -> ModuleType:
    """The file as a module of its own, not found by any import."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give the path from here ({Path.cwd()}), or the whole path")
    # Dataclasses look their module up by name; names of different files must differ, and hide no real module.
    name = f"_knapsack_rl_rule_{blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file that can be run")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} failed when it was run: {type(error).__name__}: {error}") from error
    return module


def _strategy(thing: object, where: str, setting: Setting) -> Strategy:
    """Whatever it is, as a strategy."""
    if isinstance(thing, type):
        thing = _instance(thing, where, setting)
    if _has(thing, _STRATEGY):
        return thing  # type: ignore[return-value]  # as far as can be seen; the conformance suite sees more
    if _has(thing, _ALLOCATOR):
        return OneRound(thing)  # type: ignore[arg-type]
    if callable(thing) and _takes_four(thing):
        beliefs = PosteriorBeliefs(setting.half_life)
        return OneRound(KnapsackAllocator(beliefs, thing, setting.min_count, setting.max_count))
    raise ValueError(
        f"{where} is of type {type(thing).__name__}, and no rule: a function (forecast, budget, low, high) -> Offer, an"
        f" allocator ({', '.join(_ALLOCATOR)}) or a strategy ({', '.join(_STRATEGY)}) is wanted"
    )


def _instance(kind: type, where: str, setting: Setting) -> object:
    try:
        takes_setting = "setting" in inspect.signature(kind).parameters
        return kind(setting=setting) if takes_setting else kind()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} cannot be made without arguments ({error}): give them defaults, or name an instance"
        ) from error


def _has(thing: object, methods: tuple[str, ...]) -> bool:
    return all(callable(getattr(thing, method, None)) for method in methods)


def _takes_four(thing: object) -> bool:
    """Whether it can be called as a rule is."""
    try:
        inspect.signature(thing).bind(None, 0, 0, 0)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _public(module: ModuleType) -> list[str]:
    """What the file itself defines, for a message."""
    found = vars(module).items()
    return [name for name, value in found if getattr(value, "__module__", None) == module.__name__ and name[0] != "_"]
