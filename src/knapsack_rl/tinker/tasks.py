"""Which task a group builder is for: what it names itself, else all that it holds, else its place in the data set.

Builders that ask the same question may hide another answer, word or seed, so the prompt does not identify a task. The
cookbook requires that builders can be pickled; the content of a builder is what pickle would write, without the objects
that several builders share (renderers, tokenizers, clients), which tell no tasks apart.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import chz
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.types import EnvGroupBuilder

from knapsack_rl.beliefs.ids import content_id, id_text

PromptId: TypeAlias = Callable[[EnvGroupBuilder], object]

# Fields with the number of environments: every single-agent builder of the cookbook has one, and obeys it.
SIZE_FIELDS = ("num_envs", "group_size")

# Values that are read of one builder before its content counts as unknown, and of two to find what they share.
_MOST_VALUES, _MOST_PAIRS = 20_000, 1_000

# Kinds of values without an identity of their own: equal ones are the same.
_PLAIN = (str, bytes, int, float, complex, type(None), list, tuple, dict, set, frozenset, type, types.FunctionType)


class TaskIds:
    """Ids of the tasks of one data set: the same in every epoch and after a resume, and of one task only.

    Two builders that are equal in everything share an id, hence a belief, and stay two groups.
    """

    def __init__(self, prompt_id: PromptId | None, sample: Sequence[EnvGroupBuilder]) -> None:
        """Ids for builders like those of ``sample``.

        Args:
            prompt_id: returns the id of a builder's task; None: as found.
            sample: a few builders of the data set, always the same ones, which show what builders share.
        """
        self.prompt_id = prompt_id
        self._shared: dict[int, tuple[int, object]] = {}  # a number, and the object, which thereby keeps its id()
        for builder in sample:
            other = next((each for each in sample if each is not builder and type(each) is type(builder)), None)
            if other is not None:
                self._find_shared(builder, other)
        # Not by builder alone: to find out takes long where each has a tokenizer of its own.
        self._by_place = {type(builder) for builder in sample if self._content(builder) is None}

    def __call__(self, builder: EnvGroupBuilder, place: tuple[int, int], version: int) -> str:
        """The id of a builder's task.

        Args:
            builder: the builder.
            place: number of its batch in the data set, and its position there.
            version: rule of ids, as in `Session.id_version`.

        Raises:
            ValueError: an empty id; under version 1, a builder whose task has no id.
        """
        given = getattr(builder, "prompt_id", None) if self.prompt_id is None else self.prompt_id(builder)
        if given is not None or self.prompt_id is not None:
            try:
                return str(given) if version == 1 else id_text(given)
            except (TypeError, ValueError) as error:
                raise ValueError(f"the prompt_id of a {type(builder).__name__} is {given!r}: {error}") from error
        question = question_of(builder)
        if version == 1:
            if question is None:
                raise ValueError(
                    f"{type(builder).__name__} does not say which prompt it is for: give it a prompt_id, or pass "
                    "prompt_id=function of a builder"
                )
            return content_id([builder.dataset_name, question], version=1)
        content = None if type(builder) in self._by_place else self._content(builder)
        if content is None:
            content = {"place": place, "question": question}
        return content_id([_name(type(builder)), content])

    def _content(self, builder: EnvGroupBuilder) -> object:
        """All that the builder holds; None if that is not known."""
        values = iter(range(_MOST_VALUES))

        def content(value: object, around: tuple[int, ...]) -> object:
            if next(values, None) is None or id(value) in around:
                raise _UnknownError
            if id(value) in self._shared:
                return {"shared": self._shared[id(value)][0]}
            label, parts = _parts(value)
            return [label, [[name, content(part, (*around, id(value)))] for name, part in parts]]

        try:
            return [[name, content(part, ())] for name, part in _state(builder)]
        except (_UnknownError, RecursionError):
            return None

    def _find_shared(self, one: EnvGroupBuilder, other: EnvGroupBuilder) -> None:
        """Number the objects that both hold at the same place."""
        waiting = _pairs(_state(one), _state(other))
        for part, twin in waiting:  # which grows
            if part is twin:
                if not isinstance(part, _PLAIN):
                    self._shared.setdefault(id(part), (len(self._shared), part))
            elif type(part) is type(twin) and len(waiting) < _MOST_PAIRS:
                try:
                    waiting += _pairs(_parts(part)[1], _parts(twin)[1])
                except _UnknownError:
                    continue


def question_of(builder: EnvGroupBuilder) -> str | None:
    """The question of a builder of `ProblemEnv`; None for others."""
    return str(builder.env_thunk().get_question()) if isinstance(builder, ProblemGroupBuilder) else None


class _UnknownError(Exception):
    """The content of a value is not known."""


_Parts: TypeAlias = list[tuple[str, Any]]


def _pairs(parts: _Parts, others: _Parts) -> list[tuple[Any, Any]]:
    return [(part, other) for (_, part), (_, other) in zip(parts, others, strict=False)]


def _state(builder: EnvGroupBuilder) -> _Parts:
    """What a builder holds, without its size."""
    return [(name, part) for name, part in _inside(builder) if name not in SIZE_FIELDS]


def _parts(value: Any) -> tuple[object, _Parts]:
    """A plain value that says what this is, and the values inside of it.

    Raises:
        _UnknownError: an object that cannot be pickled.
    """
    label, parts = "", []
    if value is None or isinstance(value, str | int | float):
        return [value], []
    if isinstance(value, list | tuple):
        parts = [("", part) for part in value]
    elif isinstance(value, Mapping):
        label, parts = "mapping", [(str(key), part) for key, part in value.items()]
    elif isinstance(value, types.FunctionType):
        label, parts = _name(value), list(_inside_function(value))
    elif isinstance(value, types.MethodType):
        label, parts = "method", [("", value.__func__), ("", value.__self__)]
    elif isinstance(value, functools.partial):
        label, parts = "partial", [("", value.func), ("", value.args), ("", value.keywords)]
    elif isinstance(value, types.BuiltinFunctionType | type):
        label = _name(value)
    else:
        plain = _plain(value)
        if plain is not None:
            return plain, []
        label, parts = _name(type(value)), list(_inside(value))
    return label, parts


def _plain(value: Any) -> object:
    """The content of a number, a text, an array, a path and the like; None for other objects."""
    if dataclasses.is_dataclass(value):  # it may hold more than its fields
        return None
    try:
        return [content_id(value)]
    except (TypeError, ValueError):
        if isinstance(value, set | frozenset):  # of objects: their order is not known
            raise _UnknownError from None
        return None


def _inside_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function holds: defaults, variables of the functions around it, and, if it has no name, its constants."""
    yield from (("", part) for part in function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).items()
    for cell in function.__closure__ or ():
        try:
            yield "", cell.cell_contents
        except ValueError:  # a variable that is set later
            raise _UnknownError from None
    if function.__name__ == "<lambda>":
        yield from (("", part) for part in function.__code__.co_consts if not isinstance(part, types.CodeType))


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """What pickle would write of an object, without what it has computed and kept (`cached_property`)."""
    if chz.is_chz(value):
        yield from ((name[2:], part) for name, part in vars(value).items() if name.startswith("X_"))
        return
    try:
        reduced = value.__reduce_ex__(4)
    except Exception as error:  # the object's own code, which may fail in any way
        raise _UnknownError from error
    if isinstance(reduced, str):  # the name of a global
        yield "", reduced
        return
    _, arguments, *more = reduced
    state, *items = [*more, None, None, None][:3]
    for parts in (arguments, *items):
        yield from (("", part) for part in parts or ())
    for parts in state if isinstance(state, tuple) else (state,):
        for name, part in parts.items() if isinstance(parts, dict) else [("", parts)]:
            if not isinstance(getattr(type(value), str(name), None), functools.cached_property):
                yield str(name), part


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
