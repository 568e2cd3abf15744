"""Configs of several trainers: each keeps its defaults, in either order of bases, with or without the decorator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import small
from transformers import HfArgumentParser

from knapsack_rl.trl import KnapsackGRPOConfig
from trl import GRPOConfig


@dataclass
class Other(GRPOConfig):  # type: ignore[misc]
    """As TRL's other trainers have it: defaults of its own, and a field."""

    epsilon: float = 0.4
    loss_type: str = "grpo"
    layers: list[int] = field(default_factory=lambda: [1, 2])
    sharpness: float = 2.0


ORDERS = [(KnapsackGRPOConfig, Other), (Other, KnapsackGRPOConfig)]


@pytest.mark.parametrize("bases", ORDERS, ids=["ours first", "ours last"])
@pytest.mark.parametrize("decorated", [True, False])
def test_every_field_is_that_of_its_own_class(tmp_path: Path, bases: Any, decorated: bool) -> None:
    plain: Any = type("Both", bases, {})
    both = dataclass(plain) if decorated else plain
    grandchild = dataclass(type("More", (both,), {"__annotations__": {"more": int}, "more": 3}))
    expected = {each.name: each for base in (KnapsackGRPOConfig, Other) for each in dataclasses.fields(base)}
    assert {each.name for each in dataclasses.fields(both)} == set(expected)
    for config in (both, grandchild):
        made = config(**small.settings(tmp_path, rule="uniform"))
        assert (made.epsilon, made.loss_type, made.layers, made.sharpness) == (0.4, "grpo", [1, 2], 2.0)
        assert (made.rule, made.pool, made.max_generations) == ("uniform", 1, 128)
        assert config(**small.settings(tmp_path, epsilon=0.1, layers=[])).epsilon == 0.1
    for name, default in vars(GRPOConfig(**small.settings(tmp_path))).items():
        if name not in ("epsilon", "epsilon_high", "loss_type") and not name.startswith("_"):
            assert str(getattr(made, name)) == str(default), name


@pytest.mark.parametrize("bases", ORDERS, ids=["ours first", "ours last"])
def test_they_are_options_of_a_command_line(bases: Any) -> None:
    parser = HfArgumentParser(type("Both", bases, {}))
    defaults = {action.dest: action.default for action in parser._actions}
    assert (defaults["epsilon"], defaults["rule"], defaults["loss_type"]) == (0.4, "calibrated", "grpo")


def test_a_class_of_our_own_line_is_left_alone(tmp_path: Path) -> None:
    class Mine(KnapsackGRPOConfig):
        pass

    assert "__dataclass_fields__" not in vars(Mine)
    assert Mine(**small.settings(tmp_path)).rule == "calibrated"
