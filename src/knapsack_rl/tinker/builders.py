"""What has to be known of a group builder: how many environments it makes, how to change that, and whose they are."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import chz
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.types import EnvGroupBuilder

from knapsack_rl.ids import content_id

# Every single-agent builder of the cookbook has one of these fields, and its make_envs obeys it.
SIZE_FIELDS = ("num_envs", "group_size")

PromptId = Callable[[EnvGroupBuilder], str]
PromptText = Callable[[EnvGroupBuilder], str]


def group_size(builder: EnvGroupBuilder) -> int:
    """How many environments the builder makes.

    Raises:
        ValueError: a builder without a field that says so.
    """
    return int(getattr(builder, _size_field(builder)))


def resized(builder: EnvGroupBuilder, count: int) -> EnvGroupBuilder:
    """A copy of the builder that makes ``count`` environments.

    The field is changed, and not make_envs called again and again: a builder may hold what its latest call made (the
    cookbook's sandboxes: a second call would leave the first one's running), and environments may know one another.

    Raises:
        ValueError: a builder without a field for its size.
    """
    field = _size_field(builder)
    if chz.is_chz(builder):
        return chz.replace(builder, **{field: count})
    if dataclasses.is_dataclass(builder) and not isinstance(builder, type):
        return dataclasses.replace(builder, **{field: count})
    other = copy.copy(builder)
    setattr(other, field, count)
    return other


def prompt_of(
    builder: EnvGroupBuilder, prompt_id: PromptId | None, prompt_text: PromptText | None = None
) -> tuple[str, str | None]:
    """The stable id of the builder's prompt, and its text where there is one.

    The id is what ``prompt_id`` says, else the builder's own ``prompt_id``, else a hash of the question of a
    `ProblemEnv`. The text is what ``prompt_text`` says, else that question.

    Raises:
        ValueError: a builder whose prompt cannot be told from others.
    """
    question = builder.env_thunk().get_question() if isinstance(builder, ProblemGroupBuilder) else None
    text = question if prompt_text is None else str(prompt_text(builder))
    if prompt_id is not None:
        return str(prompt_id(builder)), text
    if getattr(builder, "prompt_id", None) is not None:
        return str(builder.prompt_id), text
    if question is None:
        raise ValueError(
            f"{type(builder).__name__} does not say which prompt it is for: give it a prompt_id, or pass "
            "prompt_id=function of a builder"
        )
    return content_id([builder.dataset_name, question]), text


def _size_field(builder: EnvGroupBuilder) -> str:
    for field in SIZE_FIELDS:
        if isinstance(getattr(builder, field, None), int):
            return field
    raise ValueError(
        f"{type(builder).__name__} makes a fixed number of environments: give it a field num_envs or group_size that "
        "its make_envs obeys"
    )
