"""Rules from files: ``path/to/file.py:name`` is accepted wherever a command takes the name of a rule."""

from __future__ import annotations

import inspect
from types import ModuleType

from knapsack_arena.registry import REGISTRY, RuleContext, make_strategy
from knapsack_arena.strategies import OneRound, Strategy
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.files import run_file

_ALLOCATOR = ("plan", "observe", "state_dict", "load_state_dict")
_STRATEGY = ("step", "state_dict", "load_state_dict")


def resolve(name_or_path: str, context: RuleContext) -> Strategy:
    """Build the rule of this name, or the rule in this file.

    Raises:
        ValueError: neither; the message lists the names.
    """
    if name_or_path in REGISTRY:
        return make_strategy(name_or_path, context)
    if ".py" in name_or_path:
        return load_rule(name_or_path, context)
    raise ValueError(
        f"there is no rule {name_or_path!r}: choose from {', '.join(REGISTRY)}, or give one of your own as FILE.py:NAME"
    )


def load_rule(path_and_name: str, context: RuleContext) -> Strategy:
    """Build a strategy from what a Python file defines under a name.

    The file is run anew at every call, so that no two strategies share state. It can import its neighbours only if they
    are installed, or on ``PYTHONPATH``.

    Args:
        path_and_name: ``path/to/file.py:name``. The name may be of

            - an `AllocationRule`: a function ``(forecast, budget, low, high) -> AllocationProblem``, or an instance
              with such a ``__call__``. It gets our Beta beliefs, with the half-life and the limits of the context;
            - an `Allocator` (``plan``, ``observe``, ``state_dict``, ``load_state_dict``) or a `Strategy` (``step``,
              ``state_dict``, ``load_state_dict``): an instance, or a class. A class is called without arguments, or
              with ``context`` if it has a parameter of that name. An allocator whose ``plan`` has a parameter
              ``features`` is given the context's features.
        context: what every rule is given.

    Raises:
        ValueError: a file that is missing or fails, a name that it lacks, or an object of another kind.
    """
    path, _, name = path_and_name.rpartition(":")
    if not path.endswith(".py") or not name:
        raise ValueError(f"{path_and_name!r} does not name a rule: write path/to/file.py:name")
    module = run_file(path)
    if not hasattr(module, name):
        raise ValueError(f"{path} has no {name!r}; it has {', '.join(_public(module)) or 'no definitions of its own'}")
    return _strategy(getattr(module, name), f"{path}:{name}", context)


def _strategy(thing: object, where: str, context: RuleContext) -> Strategy:
    """Make a strategy of a rule, an allocator, a strategy, or a class of these."""
    if isinstance(thing, type):
        thing = _instance(thing, where, context)
    if _has(thing, _STRATEGY):
        return thing  # type: ignore[return-value]  # only the names of its methods are known; the suite checks more
    if _has(thing, _ALLOCATOR):
        takes_features = "features" in inspect.signature(thing.plan).parameters  # type: ignore[attr-defined]
        return OneRound(thing, features=context.features if takes_features else None)  # type: ignore[arg-type]
    if callable(thing) and _takes_four(thing):
        beliefs = BetaBeliefs(context.half_life)
        return OneRound(KnapsackAllocator(beliefs, thing, context.min_count, context.max_count))
    raise ValueError(
        f"{where} is of type {type(thing).__name__}, which is no rule: give a function (forecast, budget, low, high) ->"
        f" AllocationProblem, an allocator ({', '.join(_ALLOCATOR)}) or a strategy ({', '.join(_STRATEGY)})"
    )


def _instance(kind: type, where: str, context: RuleContext) -> object:
    try:
        takes_context = "context" in inspect.signature(kind).parameters
        return kind(context=context) if takes_context else kind()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} cannot be built without arguments ({error}): give them defaults, or name an instance"
        ) from error


def _has(thing: object, methods: tuple[str, ...]) -> bool:
    return all(callable(getattr(thing, method, None)) for method in methods)


def _takes_four(thing: object) -> bool:
    """Whether it can be called with the four arguments of a rule."""
    try:
        inspect.signature(thing).bind(None, 0, 0, 0)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _public(module: ModuleType) -> list[str]:
    """Names that the file itself defines, for a message."""
    found = vars(module).items()
    return [name for name, value in found if getattr(value, "__module__", None) == module.__name__ and name[0] != "_"]
