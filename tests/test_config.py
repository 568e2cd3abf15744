"""One configuration: defaults that follow from one another, errors by the names of the door, an allocator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from knapsack_rl import AllocationConfig, BetaBeliefs, CalibratedBeliefs, WindowBeliefs
from knapsack_rl.config import BUDGET_FIELDS, FIELDS, from_dialect, own_settings
from knapsack_rl.outcomes import Outcomes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (4, 0, "prompt")),
        ({"rule": "beta"}, (4, 0, "prompt")),
        ({"rule": "paper"}, (1, 2, "rollout")),
        ({"rule": "uniform"}, (1, 2, "rollout")),
        ({"min_count": 2}, (1, 2, "prompt")),
        ({"min_count": 0, "pool": 1}, (1, 0, "prompt")),
        ({"pool": 1}, (1, 2, "prompt")),
        ({"average": 3}, (3, 0, "prompt")),
        ({"weighting": "rollout"}, (4, 0, "rollout")),
    ],
    ids=str,
)
def test_defaults_follow_from_what_is_set(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    config = AllocationConfig(**given)
    assert (config.pool, config.min_count, config.weighting) == expected


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rule": "greedy"}, "there is no rule 'greedy': choose from calibrated, beta, paper, uniform"),
        ({"average": 1}, "average is 1: it must be a whole number of at least 2"),
        ({"average": 8.0}, "average is 8.0"),
        ({"pool": 0}, "pool is 0"),
        ({"pool": True}, "pool is True"),
        ({"min_count": 1, "pool": 1}, "min_count is 1: a group of one has no gradient"),
        ({"max_count": 1}, "max_count is 1"),
        ({"max_count": 4, "min_count": 5}, r"max_count is 4: .* min_count \(5\)"),
        ({"max_count": 4}, r"average is 8: .* between min_count \(0\) and max_count \(4\)"),
        ({"pool": 2, "min_count": 2}, "min_count is 2 with pool=2"),
        ({"pool": 2, "rule": "paper"}, "rule 'paper' does not choose among a pool"),
        ({"min_group": 10, "pool": 1}, "min_group is 10 and average is 8: with pool=1 every prompt has a group"),
        ({"min_group": 10, "rule": "uniform"}, "lower min_group or raise the average"),
        ({"min_group": 4, "min_count": 2}, r"below min_group \(4\): raise it, or leave min_count away"),
        ({"half_life": 0}, "half_life is 0"),
        ({"half_life": float("nan")}, "half_life is nan"),
        ({"success_threshold": "1"}, "success_threshold is '1'"),
        ({"weighting": "token"}, "weighting is 'token'"),
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused_by_name(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AllocationConfig(**given)


WHOLE = {"average": 2, "pool": 1, "min_count": 0, "max_count": 2, "min_group": 2, "token_every": 1}
NUMBERS = ("half_life", "success_threshold", "step_cost", "least_budget", "token_decay")


@pytest.mark.parametrize("name", [*WHOLE, *NUMBERS])
def test_numbers_of_every_field_are_of_any_kind_and_nothing_else_is_a_number(name: str) -> None:
    """Numpy's count as Python's, and come out as Python's; every other value is refused by the field's name."""
    fine = 8 if name in WHOLE else 1
    for kind in (int, np.int64, np.uint8, *(() if name in WHOLE else (float, np.float32, np.float64))):
        found = getattr(AllocationConfig(**{name: kind(fine)}), name)
        assert (found, type(found)) == (fine, int if name in WHOLE else float)
    wrong = ["1", "", True, float("nan"), float("inf"), [1], (), {}, b"1", 1j, 10**400 if name in NUMBERS else 2.0]
    if getattr(AllocationConfig, name) is not None:
        wrong.append(None)
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^{name} is .*: it must be a (finite|whole) number"):
            AllocationConfig(**{name: value})


@pytest.mark.parametrize(
    ("rule", "kind"),
    [("calibrated", CalibratedBeliefs), ("beta", BetaBeliefs), ("paper", WindowBeliefs), ("uniform", BetaBeliefs)],
)
def test_the_allocator_is_what_is_described(rule: Any, kind: type) -> None:
    config = AllocationConfig(rule=rule)
    allocator = config.make_allocator(steps_per_pass=10)
    assert type(allocator.beliefs) is kind
    assert (allocator.min_count, allocator.max_count) == (config.min_count, 128)
    assert allocator.max_idle == (80 if config.min_count == 0 else None)
    if isinstance(allocator.beliefs, BetaBeliefs):
        assert allocator.beliefs.half_life == 40
        config.set_half_life(allocator, 7.0)
        assert allocator.beliefs.half_life == 7


def test_the_budget_that_is_described_reaches_the_plan() -> None:
    """Prompts of a known rate, whose groups are soon mixed: a step that costs nothing deserves the least share."""
    ids = [f"p{i}" for i in range(4)]
    for budget, spent in (("fixed", 64), ("adaptive", 16), ("tokens", 32)):
        config = AllocationConfig(
            rule="beta", pool=1, budget=budget, step_cost=0.0, least_budget=0.25, token_decay=0.5, token_every=2
        )
        allocator = config.make_allocator(steps_per_pass=100)
        outcomes = Outcomes.from_rollouts(0, np.repeat(ids, 200).tolist(), np.tile([0.0, 1.0], 400), np.full(800, 10))
        allocator.observe(outcomes)
        plan = allocator.plan(ids, 64, step=2)
        assert plan.budget == plan.counts_P.sum() == spent, budget


def test_errors_are_in_the_dialect_of_the_door() -> None:
    aliases = {"average": "num_generations", "min_count": "min_generations", "max_count": "max_generations"}
    config = from_dialect(aliases, {"num_generations": 6, "max_generations": 9, "unknown": 3})
    assert (config.average, config.max_count) == (6, 9)
    with pytest.raises(ValueError, match=r"num_generations is 16: the average .* max_generations \(9\)"):
        from_dialect(aliases, {"num_generations": 16, "max_generations": 9})
    with pytest.raises(ValueError, match=r"min_generations is 2 with pool=3: .* so leave min_generations away"):
        from_dialect(aliases, {"pool": 3, "min_generations": 2})


def test_every_adapters_dialect_names_core_fields() -> None:
    from knapsack_rl.trl.config import ALIASES, KnapsackGRPOConfig

    # TRL's batches have one size.
    own = {field: ALIASES.get(field, field) for field in FIELDS if field not in BUDGET_FIELDS}
    defaults = AllocationConfig()
    for core, name in own.items():
        assert name in KnapsackGRPOConfig.__dataclass_fields__, name
        ours = KnapsackGRPOConfig.__dataclass_fields__[name].default
        if core not in ("average", "pool", "min_count", "max_count", "weighting"):
            assert ours == getattr(defaults, core), name


@pytest.mark.parametrize(
    ("given", "most", "pool", "least"),
    [({}, 9, 4, 0), ({}, 3, 3, 0), ({}, 1, 1, 2), ({}, 0, 1, 2), ({"least": 0}, 1, 1, 0), ({"offered": 3}, 2, 3, 0)],
)
def test_a_pool_that_is_not_given_is_what_the_data_fill(
    given: dict[str, int], most: int, pool: int, least: int
) -> None:
    found = from_dialect({"pool": "offered", "min_count": "least"}, given, most_pool=most)
    assert (found.pool, found.min_count) == (pool, least)


def test_an_adapters_own_settings_have_defaults_and_known_names() -> None:
    own = {"features": "text", "trace_file": "trace.jsonl"}
    assert own_settings({"rule": "beta", "features": "none"}, FIELDS, own) == own | {"features": None}
    with pytest.raises(ValueError, match=r"knapsack\.ruel is not a setting: there are rule, features, trace_file"):
        own_settings({"ruel": "beta"}, ["rule"], own, "knapsack.")
