"""slime's data source plans, its slots hold a prompt's rollouts, and its rewards are learned and become advantages."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slime_world import REAL, World, arguments

from knapsack_rl import content_id, group_advantages
from knapsack_rl.features.prompts import BETTER
from knapsack_rl.slime import hooks
from knapsack_rl.slime.source import PLANNED, PlansGroups
from knapsack_rl.trace import read_trace

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "same_plans.json").read_text(encoding="utf-8"))
ROWS = [{"prompt": f"prompt {i}", "label": str(i)} for i in range(12)]


def by_hardness(sample: Any) -> tuple[float | None, int]:
    """Prompt i of 12 succeeds about i times of 12; answers differ in length."""
    number = int(sample.label)
    by_hardness.calls += 1  # type: ignore[attr-defined]
    draw = np.random.default_rng([by_hardness.calls, number])  # type: ignore[attr-defined]
    return float(draw.random() < number / 12), int(draw.integers(1, 6))


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlansGroups, "current", None)
    by_hardness.calls = 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name, run in GOLDEN["runs"].items() if run["pool"] == 1])
def test_same_plans_as_every_other_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings, expected = GOLDEN["settings"], GOLDEN["runs"][name]
    rows = [{"prompt": GOLDEN["prompts"][i]} for step in expected["steps"] for i in step["prompts"]]
    batch = len(expected["steps"][0]["prompts"])
    knapsack = settings | {"rule": expected["rule"], "features": "none"}
    args = arguments(tmp_path, rows, batch, label_key=None, knapsack=knapsack)
    rewards = iter([reward for step in expected["steps"] for group in step["rewards"] for reward in group])
    world = World(monkeypatch, args, lambda _: (next(rewards), 3))
    for golden in expected["steps"]:
        samples, given, _ = world.step()
        assert given == [reward for group in golden["rewards"] for reward in group]
        assert list(Counter(sample.group_index for sample in samples).values()) == golden["counts"]
    steps = read_trace(tmp_path / "out" / "trace.jsonl").steps
    for step, golden in zip(steps, expected["steps"], strict=True):
        assert step.plan.counts_P.tolist() == golden["counts"]
        np.testing.assert_allclose(step.plan.success_rates_P, golden["rates"], rtol=1e-6)
    beliefs: Any = world.source.session.allocator.beliefs
    final = beliefs.forecast([content_id(prompt) for prompt in GOLDEN["prompts"]], len(steps))
    np.testing.assert_allclose(final.success_rates_P, expected["beliefs"]["rates"], rtol=1e-6)


@pytest.mark.parametrize(
    ("knapsack", "said"),
    [
        (
            {},
            f"look=texts ({BETTER}); slime asks for no look, so there are no log odds",
        ),
        ({"features": "none"}, "look=none; slime asks for no look, so there are no log odds"),
        ({"rule": "beta"}, "weighting=prompt"),
    ],
)
def test_what_is_less_than_by_default_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    knapsack: dict[str, Any],
    said: str,
) -> None:
    World(monkeypatch, arguments(tmp_path, ROWS, 4, knapsack=knapsack), by_hardness)
    rule = knapsack.get("rule", "calibrated")
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("knapsack-rl:")]
    assert line.startswith(f"knapsack-rl: rule={rule}, pool=1, because slime leaves no prompt out, weighting=")
    assert line.endswith(said)


@pytest.mark.parametrize("library", ["slime", "miles"])
def test_a_slot_is_one_rollout_and_has_the_planned_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    world = World(monkeypatch, arguments(tmp_path, ROWS, 6), by_hardness, library)
    for _ in range(4):
        samples, _, _ = world.step()
        assert len(samples) == 6 * 8
        slots: dict[int, list[Any]] = {}
        for sample in samples:
            slots.setdefault(sample.group_index, []).append(sample)
        assert len(slots) == 6
        for slot in slots.values():
            assert len({sample.rollout_id for sample in slot}) == 1
            assert [sample.metadata[PLANNED]["count"] for sample in slot] == [len(slot)] * len(slot)
            assert len({id(sample) for sample in slot}) == len(slot) >= 2
        assert len({sample.rollout_id for sample in samples}) == 6
        assert world.source.session.open_plans == []


def test_deterministic_inference_has_a_seed_for_each_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, arguments(tmp_path, ROWS, 6), by_hardness)
    groups = world.groups({"sampling_seed": 5})
    assert sorted(world.seeds) == sorted(5 + i for (slot,) in groups for i in range(len(slot)))


def test_evaluation_generates_one_answer_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from slime.utils.types import Sample

    world = World(monkeypatch, arguments(tmp_path, ROWS, 6), by_hardness)
    answer = asyncio.run(hooks.generate(world.args, Sample(prompt="p", label="3"), {}))
    assert isinstance(answer, Sample)
    assert world.source.session.step == 0


def loss(advantages: Any, lengths: Any, slots: Any, terms: Any) -> float:
    """slime's loss: advantage x term, a mean over the tokens of each slot, and the mean over slots."""
    total = 0.0
    for slot in np.unique(slots):
        rows = np.flatnonzero(slots == slot)
        total += sum(advantages[i] * terms[i].sum() for i in rows) / sum(lengths[i] for i in rows)
    return float(total / np.unique(slots).size)


@pytest.mark.parametrize("weighting", ["prompt", "rollout"])
def test_uniform_is_what_slime_trains_on_without_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weighting: str
) -> None:
    """The same loss from slots of 8 rollouts as from 8 slots of a rollout with slime's own normalization."""
    knapsack = {"rule": "uniform", "weighting": weighting}
    world = World(monkeypatch, arguments(tmp_path, ROWS, 6, knapsack=knapsack), by_hardness)
    samples, rewards, ours = world.step()
    lengths = np.array([sample.response_length for sample in samples])
    terms = [np.random.default_rng(i).normal(size=length) for i, length in enumerate(lengths)]
    grouped = np.array(rewards).reshape(6, 8)
    stock = ((grouped - grouped.mean(1, keepdims=True)) / (grouped.std(1, ddof=1, keepdims=True) + 1e-6)).ravel()
    slots = np.array([sample.group_index for sample in samples])
    alone = np.arange(len(samples))
    assert loss(ours, lengths, slots, terms) == pytest.approx(loss(stock, lengths, alone, terms), abs=1e-12)
    assert np.any(stock)


@pytest.mark.parametrize("weighting", ["prompt", "rollout"])
def test_uneven_slots_weigh_as_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weighting: str) -> None:
    """With a term of 1 for each token, a slot's share of the loss is the sum of |advantage| over its rollouts."""
    knapsack = {"rule": "beta", "weighting": weighting, "features": "none"}
    world = World(monkeypatch, arguments(tmp_path, ROWS, 6, knapsack=knapsack), by_hardness)
    for _ in range(4):
        samples, rewards, ours = world.step()
    slots = np.array([sample.group_index for sample in samples])
    sizes = [int((slots == slot).sum()) for slot in np.unique(slots)]
    assert len(set(sizes)) > 1
    for slot, size in zip(np.unique(slots), sizes, strict=True):
        rows = np.flatnonzero(slots == slot)
        got, tokens = np.array(rewards)[rows], np.array([samples[i].response_length for i in rows])
        plain = (got - got.mean()) / (got.std(ddof=1) + 1e-6)
        share = np.abs(np.array(ours)[rows] * tokens).sum() / tokens.sum()
        weight = 1 if weighting == "prompt" else size / np.mean(sizes)
        assert share == pytest.approx(weight * np.abs(plain).mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("estimator", "given", "scale"),
    [
        ("grpo", {}, "group"), ("grpo", {"scale": None}, "group"), ("grpo", {"scale": "none"}, "none"),
        ("gspo", {"scale": "batch"}, "batch"), ("reinforce_plus_plus_baseline", {}, "none"),
    ],
)  # fmt: skip
def test_advantages_are_divided_as_set_or_as_the_estimator_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, estimator: str, given: dict[str, Any], scale: Any
) -> None:
    knapsack = {"rule": "uniform", "weighting": "rollout"} | given
    args = arguments(tmp_path, ROWS, 6, knapsack=knapsack, advantage_estimator=estimator, calculate_per_token_loss=True)
    samples, rewards, ours = World(monkeypatch, args, by_hardness).step()
    expected = group_advantages([sample.group_index for sample in samples], rewards, scale, epsilon=1e-6)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_answers_that_were_lost_are_no_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, arguments(tmp_path, ROWS, 6), lambda _: (None, 0))
    _, rewards, advantages = world.step()
    assert set(rewards) == set(advantages) == {0.0}
    beliefs: Any = world.source.session.allocator.beliefs
    again = beliefs.forecast([each.metadata[PLANNED]["prompt_id"] for (each,) in world.source.get_samples(6)], 1)
    assert np.unique(again.success_rates_P).tolist() == [0.5]


def test_killed_and_resumed_is_the_run_that_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path, ROWS, 6)
    world = World(monkeypatch, args, by_hardness)
    through = []
    for rollout_id in range(8):
        samples, rewards, _ = world.step()
        through.append(([s.group_index for s in samples], rewards))
        if rollout_id == 3:
            world.source.save(rollout_id)
            calls = by_hardness.calls  # type: ignore[attr-defined]
    args.load = args.save
    by_hardness.calls = calls  # type: ignore[attr-defined]
    again = World(monkeypatch, args, by_hardness)
    again.source.load(3)
    for expected in through[4:]:
        samples, rewards, _ = again.step()
        assert ([s.group_index for s in samples], rewards) == expected
    assert [step.plan.step for step in read_trace(tmp_path / "out" / "trace.jsonl").steps] == list(range(8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_samples_per_prompt": 8}, "--n-samples-per-prompt is 8: set it to 1"),
        ({"partial_rollout": True}, "--partial-rollout does not work"),
        ({"dynamic_sampling_filter_path": "a.b"}, "--dynamic-sampling-filter-path"),
        ({"group_rm": True}, "--group-rm"),
        ({"fully_async": True}, "--fully-async"),
        ({"log_passrate": True}, "--log-passrate"),
        ({"over_sampling_batch_size": 9}, "--over-sampling-batch-size is 9"),
        ({"prompt_data": None}, "--prompt-data"),
        ({"advantage_estimator": "ppo"}, "--advantage-estimator ppo"),
        ({"rewards_normalization": False}, "--disable-rewards-normalization"),
        ({"knapsack": {"pool": 4}}, "knapsack.pool is 4"),
        ({"knapsack": {"pool": 0}}, "knapsack.pool is 0"),
        ({"knapsack": {"pool": None, "min_group": 4, "min_count": 2}}, "leave knapsack.min_count away"),
        ({"knapsack": {"min_count": 0}}, "knapsack.min_count 0"),
        ({"knapsack": {"average": 1}}, "knapsack.average is 1"),
        ({"knapsack": {"ruel": "beta"}}, "knapsack.ruel is not a setting"),
        ({"knapsack": {"budget": "tokens"}}, "knapsack.budget is not a setting"),
        ({"knapsack": {"scale": "std"}}, "knapsack.scale is 'std'"),
    ],
)
def test_what_breaks_groups_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hooks.DataSource(arguments(tmp_path, ROWS, 6, **changes))


def test_rewards_without_a_plan_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="--data-source-path"):
        hooks.post_process(arguments(tmp_path, ROWS, 6), [])


@pytest.mark.skipif(not REAL, reason="needs a checkout of slime: make test-slime SLIME=FOLDER")
def test_slimes_own_rollout_function_and_train_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches slime's trainer: one rollout id for each prompt, and the tokens of its whole slot."""
    from slime_real import rollout_manager

    args = arguments(tmp_path, ROWS, 6)
    world = World(monkeypatch, args, by_hardness)
    generate, convert, steps_of = rollout_manager(monkeypatch, args, world)
    for rollout_id in range(3):
        samples = generate(rollout_id)
        data = convert(samples)
        ids = data["rollout_ids"]
        assert len(set(ids)) == 6
        assert len(ids) == 48
        for rollout in set(ids):
            rows = [i for i, each in enumerate(ids) if each == rollout]
            assert {data["rollout_mask_sums"][i] for i in rows} == {sum(data["response_lengths"][i] for i in rows)}
        assert steps_of(data) == 1
        assert world.source.session.step == rollout_id + 1
