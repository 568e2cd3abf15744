"""Batches that are planned when their first group starts, with looks at the present policy; no server."""

from __future__ import annotations

import asyncio
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import world
from tinker_cookbook.rl import train as train_loop
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.rollout_strategy import FailFast, MinViableGroup, RetryOnFailure
from tinker_cookbook.rl.rollouts import do_group_rollout_and_filter_constant_reward, set_rollout_executor
from tinker_cookbook.utils.ml_log import dump_config

from knapsack_rl import KnapsackAllocator
from knapsack_rl.beliefs.looks import log_odds
from knapsack_rl.tinker import LookFirst, allocated
from knapsack_rl.tinker.dataset import LOG_FILE
from knapsack_rl.tinker.outcome_log import OutcomeLog, Planned
from knapsack_rl.trace import read_trace

ASKED: dict[str, Any] = {
    "rule": "calibrated",
    "half_life": 8.0,
    "pool": 2,
    "ask": True,
    "prompt_tokens": lambda builder: world.observation(builder.prompt),
    "prompt_text": lambda builder: "x" * 2**builder.prompt,
    "features": "text",
}


def planned(path: Path) -> list[Planned]:
    return [entry for entry in OutcomeLog(path / LOG_FILE).valid() if isinstance(entry, Planned)]


def test_every_candidate_is_looked_at_once_and_only_by_the_present_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = world.dataset(tmp_path, **ASKED)
    clients, left_out = [], 0
    for index in range(6):
        groups = data.get_batch(index)
        assert [group.share for group in groups] == [None] * 16  # not planned
        clients.append(world.looking(index))
        before = [list(client.looks) for client in clients[:-1]]
        came = world.sampled(groups, clients[-1])
        assert [client.looks for client in clients[:-1]] == before
        plan = planned(tmp_path)[-1].plan
        assert [f"p{prompt}" for prompt in clients[-1].looks] == list(plan.prompt_ids)
        # What the loop trains on: the chosen prompts in their order, as large as planned; the other groups are none.
        chosen = plan.counts_P[plan.counts_P > 0].tolist()
        assert [len(group.trajectories_G) for group in came if group is not None] == chosen
        assert sum(chosen) == world.GROUPS * world.SIZE
        assert came[len(chosen) :] == [None] * (16 - len(chosen))
        assert [group.share.group.prompt_id for group in groups if group.share] == [prompt_id for prompt_id, _ in plan]
        assert came[0].metrics_G[0]["knapsack/look_unknown"] == 0.0
        assert came[0].metrics_G[0]["knapsack/look_seconds"] > 0.0
        left_out += 16 - len(chosen)
    assert left_out > 8
    assert not [
        each for each in caplog.records if each.levelno >= logging.WARNING
    ]  # the cookbook would warn of each group that is left out
    assert data.tracker.learned == 6
    for step, entry in zip(read_trace(tmp_path / "trace.jsonl").steps, planned(tmp_path), strict=True):
        np.testing.assert_array_equal(step.log_odds_P, log_odds(entry.log_prob_P))
        assert np.ptp(step.log_odds_P) > 1


def test_confidence_changes_plans(tmp_path: Path) -> None:
    world.train(tmp_path / "asked", range(6), **ASKED)
    world.train(tmp_path / "not", range(6), **ASKED | {"ask": False})
    asked, not_asked = planned(tmp_path / "asked"), planned(tmp_path / "not")
    assert [entry.log_prob_P for entry in not_asked] == [None] * 6
    np.testing.assert_array_equal(asked[0].plan.counts_P, not_asked[0].plan.counts_P)  # before any outcome
    assert any((one.plan.counts_P != other.plan.counts_P).any() for one, other in zip(asked, not_asked, strict=True))


def test_a_look_that_fails_costs_its_prompt_the_confidence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = world.dataset(tmp_path, **ASKED)
    for index in range(4):
        client = world.Client(lambda prompt: {3: None, 5: 0.5, 7: -np.inf}.get(prompt, -1.0))
        came = world.sampled(data.get_batch(index), client)
        assert sum(len(group.trajectories_G) for group in came if group) == world.GROUPS * world.SIZE
        assert came[0].metrics_G[0]["knapsack/look_unknown"] == 3 / 16
        assert sorted(client.looks) == list(range(16))
        entry = planned(tmp_path)[-1]
        unknown = [name for name, odds in zip(entry.plan.prompt_ids, entry.log_prob_P, strict=True) if np.isnan(odds)]
        assert sorted(unknown) == ["p3", "p5", "p7"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "3 of 16 looks failed (RuntimeError: the server is busy)" in warnings[0]


def test_the_time_of_looks_counts_as_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = world.dataset(tmp_path, **ASKED)
    ask = data._looking.next_token.log_probs

    async def slow(*given: Any) -> Any:
        await asyncio.sleep(0.2)
        return await ask(*given)

    monkeypatch.setattr(data._looking.next_token, "log_probs", slow)
    world.sampled(data.get_batch(0), world.looking(0))
    data.get_batch(1)  # learns
    assert read_trace(tmp_path / "trace.jsonl").steps[0].seconds["overhead"] >= 0.2


def test_a_group_that_is_run_again_is_learned_with_the_look_that_it_was_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for resumed in (False, True):
        data = world.dataset(tmp_path, **ASKED)
        if not resumed:
            groups = data.get_batch(0)
            world.sampled(groups, world.looking(0))
            data.get_batch(1)
        else:
            world.checkpoint(tmp_path, 1)
            data.get_batch(1)
        learned: list[Any] = []
        beliefs = data.session.allocator.beliefs
        monkeypatch.setattr(beliefs, "observe", lambda outcomes, to=learned: to.append(outcomes))
        plan = planned(tmp_path)[0].plan
        again = next(group for group in groups if group.share is not None)
        world.sampled([again], world.looking(1))
        data.tracker.collect()
        [outcomes] = learned
        place = plan.prompt_ids.index(outcomes.prompt_ids[0])
        expected = data.tracker._recent[0].features.take(np.array([place]))
        assert outcomes.features is not None
        assert np.isfinite(outcomes.features.confidence_P_C).all()
        np.testing.assert_array_equal(outcomes.features.features_P_F, expected.features_P_F)
        np.testing.assert_array_equal(outcomes.features.confidence_P_C, expected.confidence_P_C)


def test_a_look_that_never_comes_back_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knapsack_rl.tinker.looks.PATIENCE", 0.0)

    class Silent(world.Client):
        async def sample_async(self, *, prompt: Any, num_samples: int, sampling_params: Any) -> Any:
            if sampling_params.temperature == 0.0:
                await asyncio.Event().wait()
            return await super().sample_async(prompt=prompt, num_samples=num_samples, sampling_params=sampling_params)

    came = world.sampled(world.dataset(tmp_path, **ASKED).get_batch(0), Silent(lambda prompt: -1.0))
    assert sum(len(group.trajectories_G) for group in came if group) == world.GROUPS * world.SIZE
    assert np.isnan(planned(tmp_path)[0].log_prob_P).all()


def test_a_policy_of_another_kind_is_not_asked(tmp_path: Path) -> None:
    groups = world.dataset(tmp_path, **ASKED).get_batch(0)

    async def run() -> None:
        await asyncio.gather(*(LookFirst(FailFast()).execute(group, world.policy) for group in groups[:4]))

    asyncio.run(run())
    assert np.isnan(planned(tmp_path)[0].log_prob_P).all()


@pytest.mark.parametrize("stop", [2, 4, 6])
@pytest.mark.parametrize("killed_after", [0, 1])
@pytest.mark.parametrize("keep", [False, True])
def test_a_resumed_run_with_looks_plans_as_if_it_had_not_stopped(
    tmp_path: Path, stop: int, killed_after: int, keep: bool
) -> None:
    """The policy of an earlier step cannot be asked again: its answers are in the log."""
    settings = ASKED | {"save_every": stop, "keep_successes": keep}
    through = world.train(tmp_path / "through", range(8), **settings)
    world.train(tmp_path / "again", range(stop + killed_after), **settings)
    resumed = world.train(tmp_path / "again", range(stop, 8), **settings)
    assert world.record_of(tmp_path / "again") == world.record_of(tmp_path / "through")
    assert world.rates(resumed) == world.rates(through)
    combiner = through.session.allocator.beliefs.combiner
    assert combiner.weights_F[-4:].any()  # of the confidence
    np.testing.assert_array_equal(combiner.weights_F, resumed.session.allocator.beliefs.combiner.weights_F)
    if keep:
        assert through.tracker.kept.state_dict().keys() == resumed.tracker.kept.state_dict().keys()
        for name, array in through.tracker.kept.state_dict().items():
            np.testing.assert_array_equal(array, resumed.tracker.kept.state_dict()[name])
        assert len(through.tracker.kept) > 8
        assert through.tracker._observations == resumed.tracker._observations


def test_batches_are_planned_in_their_order_whichever_starts_first(tmp_path: Path) -> None:
    data = world.dataset(tmp_path, **ASKED | {"pool": 1})
    first, second, third = (data.get_batch(index) for index in range(3))
    world.sampled(third[:3], world.looking(0))
    assert [entry.step for entry in planned(tmp_path)] == [0, 1, 2]
    assert data.tracker.learned == 0
    for batch in (second, third[3:], first):
        world.sampled(batch, world.looking(1))
    assert data.tracker.learned == 3


def test_a_group_that_is_cancelled_does_not_take_the_plan_with_it(tmp_path: Path) -> None:
    groups = world.dataset(tmp_path, **ASKED).get_batch(0)
    strategy = LookFirst(FailFast())

    async def run() -> list[Any]:
        def start(group: Any) -> asyncio.Future[Any]:
            client = world.looking(0)
            return asyncio.ensure_future(
                do_group_rollout_and_filter_constant_reward(client, group, 3, 1.0, False, False, strategy)
            )

        tasks = [start(group) for group in groups]
        for _ in range(2):
            await asyncio.sleep(0)
        tasks[0].cancel()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    came = asyncio.run(run())
    assert isinstance(came[0], asyncio.CancelledError)
    assert len(planned(tmp_path)) == 1
    assert sum(group is not None for group in came[1:]) == np.count_nonzero(planned(tmp_path)[0].plan.counts_P) - 1


@pytest.mark.parametrize("inner", [FailFast(), RetryOnFailure(), MinViableGroup()])
def test_a_batch_that_cannot_be_planned_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: Any
) -> None:
    """Strategies that skip a group that fails would otherwise skip all of them, step after step."""
    data = world.dataset(tmp_path, **ASKED)
    strategy = LookFirst(inner)
    assert strategy.catches_group_errors == inner.catches_group_errors
    monkeypatch.setattr(data.session, "plan", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.sampled(data.get_batch(0), world.looking(0), strategy)


def test_other_builders_pass_through(tmp_path: Path) -> None:
    """Those of a test set, and those of a batch that was planned before."""
    strategy = pickle.loads(pickle.dumps(LookFirst(FailFast())))
    client = world.looking(0)
    came = world.sampled([world.SeededBuilder(15, 0)], client, strategy)
    assert came[0].get_total_rewards() == [1.0] * world.SIZE
    data = world.dataset(tmp_path, **ASKED | {"ask": False})
    assert all(world.sampled(data.get_batch(0), client, strategy))
    assert client.looks == []


def test_rollouts_elsewhere_are_planned_before_they_are_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(2) as pool, caplog.at_level(logging.INFO):
        set_rollout_executor(pool)
        try:
            data = world.dataset(tmp_path, **ASKED)
            client = world.looking(0)
            groups = data.get_batch(0)
            assert all(group.count for group in groups)
            assert all(world.sampled(groups, client))
        finally:
            set_rollout_executor(None)
    assert client.looks == []
    assert planned(tmp_path)[0].log_prob_P is None
    assert "no log odds, rollouts run in other threads or processes" in caplog.text


def test_a_group_without_a_plan_says_what_to_do(tmp_path: Path) -> None:
    group = world.dataset(tmp_path, **ASKED).get_batch(0)[0]
    with pytest.raises(ValueError, match=r"this group has no plan: .* call allocated\(config\) last"):
        world.rollouts([group])


def test_a_prompt_is_asked_about_as_its_environment_begins(tmp_path: Path) -> None:
    """A `ProblemEnv` is asked for its first observation; tokens may be given as numbers."""

    class Sum(world.Sum):
        async def initial_observation(self) -> Any:
            if self.number == 3:
                raise RuntimeError("no renderer")
            return world.observation(self.number), []

    def sums(prompt: int, batch: int) -> Any:
        return ProblemGroupBuilder(env_thunk=partial(Sum, prompt), num_envs=world.SIZE)

    options = {"rule": "calibrated", "pool": 2, "ask": True, "features": None}
    data = world.dataset(tmp_path / "env", world.Dataset(builder=sums), **options)
    client = world.looking(0)
    log_prob_P = asyncio.run(data._looking.next_token.log_probs(client, data._offered(0).builders))
    assert client.looks == [prompt for prompt in range(16) if prompt != 3]
    assert np.flatnonzero(np.isnan(log_prob_P)).tolist() == [3]
    numbers = options | {"prompt_tokens": lambda builder: world.observation(builder.prompt).to_ints()}
    data = world.dataset(tmp_path / "numbers", **numbers)
    again = asyncio.run(data._looking.next_token.log_probs(client, data._offered(0).builders))
    known = ~np.isnan(log_prob_P)
    np.testing.assert_array_equal(again[known], log_prob_P[known])


def config(path: Path, **changes: Any) -> train_loop.Config:
    sums = world.Inner(dataset=world.Dataset(builder=world.sums))
    settings = {"dataset_builder": sums, "model_name": "Qwen/Qwen3-8B", "recipe_name": "test", "max_tokens": 8}
    return train_loop.Config(**{"learning_rate": 1e-4, "log_path": str(path), **settings, **changes})


def test_the_default_asks_and_wraps_the_configs_own_strategy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = allocated(config(tmp_path, rollout_error_tolerance=RetryOnFailure(max_retries=7)))
    strategy = found.effective_rollout_strategy()
    assert isinstance(strategy, LookFirst)
    assert strategy.inner == RetryOnFailure(max_retries=7)
    assert isinstance(allocated(config(tmp_path)).effective_rollout_strategy().inner, FailFast)
    dump_config(found)  # the cookbook writes it to its log
    data, _ = asyncio.run(found.dataset_builder())
    with caplog.at_level(logging.INFO):
        assert len(data.get_batch(0)) == 4 * world.GROUPS
    said = "rule=calibrated, pool=4, features=text (a file of `knapsack-rl features` tells more), ask=True; "
    assert said + "less than by default: weighting=rollout" in caplog.text
    plain = allocated(config(tmp_path, rollout_error_tolerance=True), ask=False)
    assert plain.rollout_error_tolerance is True


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "uniform"}, "rule=uniform, pool=1, features=none, ask=False"),
        (
            {"weighting": "prompt"},
            "rule=calibrated, pool=4, features=text (a file of `knapsack-rl features` tells more), ask=True",
        ),
        ({"weighting": "prompt", "ask": False}, "ask=False; less than by default: no log odds, ask=False"),
        ({"weighting": "prompt", "pool": 1}, "ask=True; less than by default: pool=1 instead of 4"),
        (
            {"inner": world.Dataset()},
            "less than by default: no features, the texts of prompts are not known; no log odds, the tokens of prompts",
        ),
        (
            {"weighting": "prompt", "make_allocator": KnapsackAllocator},
            "pool=1, features=none, ask=False; less than by",
        ),
    ],
)
def test_what_is_less_than_by_default_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], said: str
) -> None:
    options = dict(options)
    builder = world.Inner(dataset=options.pop("inner", world.Dataset(builder=world.sums)))
    data, _ = asyncio.run(allocated(config(tmp_path, dataset_builder=builder), **options).dataset_builder())
    with caplog.at_level(logging.INFO):
        data.get_batch(0)
    lines = [record.getMessage() for record in caplog.records if "knapsack-rl:" in record.getMessage()]
    assert len(lines) == 1
    assert said in lines[0]
    assert ("less" in said) == ("less" in lines[0])
