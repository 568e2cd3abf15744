"""What every adapter shares: plans under way, outcomes in part and late, the record, checkpoints, threads."""

from __future__ import annotations

import itertools
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl import (
    AllocationConfig,
    BeliefFileError,
    BetaBeliefs,
    CalibratedBeliefs,
    KnapsackAllocator,
    Outcomes,
    Plan,
    PromptFeatures,
    Session,
)
from knapsack_rl.metrics import as_text, best_and_worst
from knapsack_rl.trace import read_trace

IDS = [f"p{i}" for i in range(8)]
RATES = np.linspace(0, 1, 8)
BETA = AllocationConfig(rule="beta", pool=1)
CALIBRATED = AllocationConfig(rule="calibrated", pool=1)
LOOKS = PromptFeatures(np.random.default_rng(3).standard_normal((8, 5)), np.linspace(-1, 1, 8)[:, None])


def rollouts(plan: Plan, seed: int = 0, values: tuple[float, float] = (0.0, 1.0)) -> tuple[list[str], list[float]]:
    """All rollouts of a plan; the rewards depend on seed and step alone, so that a resumed run meets the same."""
    ids = [plan.prompt_ids[i] for i in plan.group_PG]
    solved = np.random.default_rng([seed, plan.step]).random(plan.budget) < np.repeat(RATES, plan.counts_P)
    return ids, np.where(solved, values[1], values[0]).tolist()


def run(
    session: Session, steps: int, values: tuple[float, float] = (0.0, 1.0), features: Any = None
) -> list[list[int]]:
    plans = []
    for _ in range(steps):
        plan = session.plan(IDS, 64, features=features)
        metrics = session.observe(plan.step, *rollouts(plan, values=values))
        assert metrics["overhead_seconds"] > 0
        assert metrics["rollouts_lost"] == 0
        plans.append(plan.counts_P.tolist())
    return plans


def forecast_of(session: Session, features: PromptFeatures | None = None) -> list[float]:
    assert isinstance(session.allocator, KnapsackAllocator)
    return session.allocator.beliefs.forecast(IDS, session.step, features).success_rates_P.tolist()


def as_bytes(state: Any) -> bytes:
    return pickle.dumps(state)  # equal if and only if the state is, to the bit


def test_ten_lines_of_a_loop() -> None:
    """As in the module's docstring: ids of any kind, the default configuration, a plan that is iterated."""
    session = Session(AllocationConfig(average=8))
    for _ in range(3):
        plan = session.plan(range(32))  # a pool of 4: as many rollouts as 8 prompts
        assert plan.budget == 64
        ids = [prompt_id for prompt_id, count in plan for _ in range(count)]
        metrics = session.observe(plan.step, ids, [float(k % 2) for k in range(64)])
        assert metrics["frac_prompts_mixed"] > 0
    again = Session(AllocationConfig(average=8))
    again.load_state_dict(session.state_dict())
    assert again.plan(range(32)).counts_P.tolist() == session.plan(np.array(range(32)).astype(str)).counts_P.tolist()


def test_a_session_that_was_saved_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    through = run(Session(BETA), 9)
    first = Session(BETA)
    assert run(first, 5) == through[:5]
    first.save_to(tmp_path)
    second = Session(BETA)
    assert second.load_from(tmp_path)
    assert second.step == 5
    assert run(second, 4) == through[5:]
    assert len({tuple(plan) for plan in through}) > 1


@given(st.permutations(range(64)), st.lists(st.integers(0, 64), max_size=4))
def test_rollouts_in_part_and_in_any_order_leave_the_same_belief(order: list[int], cuts: list[int]) -> None:
    whole, parts = Session(BETA), Session(BETA)
    plan = whole.plan(IDS, 64)
    assert parts.plan(IDS, 64).counts_P.tolist() == plan.counts_P.tolist()
    ids, rewards = rollouts(plan)
    expected = whole.observe(0, ids, rewards)
    bounds = [0, *sorted(cuts), 64]
    metrics = [
        parts.observe(0, [ids[i] for i in order[a:b]], [rewards[i] for i in order[a:b]])
        for a, b in itertools.pairwise(bounds)
    ]
    finished = [each for each in metrics if each]
    assert len(finished) == 1
    for name in ("frac_prompts_mixed", "frac_solved_all", "frac_solved_none", "rollouts_lost"):
        assert finished[0][name] == expected[name]
    np.testing.assert_allclose(forecast_of(parts), forecast_of(whole), rtol=1e-6)
    assert parts.open_plans == []


@pytest.mark.parametrize("in_order", [False, True])
def test_planning_ahead_with_features_learns_what_planning_one_by_one_does(in_order: bool) -> None:
    """Three batches are planned before the first comes back: the features of each plan are those it is learned with."""

    def looks(step: int) -> PromptFeatures:
        return PromptFeatures(LOOKS.features_P_F + step, LOOKS.confidence_P_C * (step + 1))

    # One by one: the same plans, each observed before the next is made.
    ahead, beliefs = Session(CALIBRATED, in_order=in_order), CalibratedBeliefs(CALIBRATED.half_life_in_steps())
    for first in (0, 3, 6):
        plans = [ahead.plan(IDS, 64, features=looks(step)) for step in range(first, first + 3)]
        for plan in plans if not in_order else reversed(plans):
            ahead.observe(plan.step, *rollouts(plan))
        for plan in plans:
            rewards = rollouts(plan)[1]
            assert plan.features is not None
            beliefs.observe(
                Outcomes(plan.step, plan.prompt_ids, plan.counts_P, np.array(rewards), features=plan.features)
            )
    assert isinstance(ahead.allocator, KnapsackAllocator)
    for step in (9, 20):
        found = ahead.allocator.beliefs.forecast(IDS, step, looks(step))
        expected = beliefs.forecast(IDS, step, looks(step))
        np.testing.assert_array_equal(found.success_rates_P, expected.success_rates_P)
        np.testing.assert_array_equal(found.pseudo_count_P, expected.pseudo_count_P)


@pytest.mark.parametrize("config", [BETA, CALIBRATED, AllocationConfig(rule="paper")], ids=lambda config: config.rule)
def test_a_plan_changes_nothing_that_is_learned(config: AllocationConfig) -> None:
    features = LOOKS if config.rule == "calibrated" else None
    asked, silent = Session(config), Session(config)
    for session in (asked, silent):
        run(session, 3, features=features)
    before = as_bytes(asked.allocator.state_dict())
    extra = asked.plan(IDS[::-1], 64, features=features)
    asked.give_up(extra.step)
    assert as_bytes(asked.allocator.state_dict()) == before
    asked.step -= 1
    run(asked, 2, features=features)
    run(silent, 2, features=features)
    assert as_bytes(asked.allocator.state_dict()) == as_bytes(silent.allocator.state_dict())


@pytest.mark.parametrize(
    ("step", "ids", "told"),
    [
        (0, ["p0"] * 9, r"1 rollouts in step 0 are not waited for, the first of prompt 'p0'"),
        (0, ["q"], r"1 rollouts in step 0 .* prompt 'q'"),
        (1, ["p0"], r"1 rollouts in step 1"),
    ],
    ids=["too many", "unknown prompt", "unknown step"],
)
def test_what_no_plan_waits_for_is_refused(step: int, ids: list[str], told: str) -> None:
    session = Session(BETA)
    session.plan(IDS, 64)
    before = as_bytes(session.state_dict())
    with pytest.raises(ValueError, match=told):
        session.observe(step, ids, [1.0] * len(ids))
    assert as_bytes(session.state_dict()) == before


@pytest.mark.parametrize("config", ["beta", {"rule": "beta"}, BetaBeliefs()], ids=["name", "mapping", "beliefs"])
def test_a_session_takes_a_configuration_and_nothing_that_is_none(config: Any) -> None:
    with pytest.raises(TypeError, match="pass an AllocationConfig"):
        Session(config)


def test_a_duplicate_is_refused_or_counted_by_request() -> None:
    session = Session(BETA)
    plan = session.plan(IDS, 64)
    ids, rewards = rollouts(plan)
    session.observe(0, ids, rewards)
    with pytest.raises(ValueError, match="pass each rollout once"):
        session.observe(0, ids[:2], rewards[:2])
    before = forecast_of(session)
    assert session.observe(0, ["p7"] * 5, [0.0] * 5, unplanned=True) == {}
    assert forecast_of(session)[7] < before[7]
    assert forecast_of(session)[:7] == before[:7]


@pytest.mark.parametrize("rule", ["calibrated", "beta", "paper", "uniform"])
@pytest.mark.parametrize("budget", ["64", 64.5, True, float("nan"), float("inf"), -2, 10**20, [64], 1j], ids=repr)
def test_a_budget_is_a_whole_number_under_every_rule(rule: Any, budget: Any) -> None:
    session = Session(AllocationConfig(rule=rule))
    with pytest.raises(ValueError, match="a budget of .* rollouts is not a whole number from 0"):
        session.plan(IDS, budget)
    assert (session.step, session.open_plans) == (0, [])
    for same in (64, 64.0, np.int64(64), np.float32(64)):
        assert session.plan(IDS, same).budget == 64


@pytest.mark.parametrize(
    "rewards",
    [[1.0], [float("inf"), 0.0], [[1.0, 0.0]], [1.0, "right"], [1.0, 1j], [1.0, 10**400], 1.0, None],
    ids=["too few", "infinite", "nested", "text", "complex", "too large", "one number", "nothing"],
)
def test_rewards_that_cannot_be_used_change_nothing(rewards: Any) -> None:
    session = Session(BETA)
    session.plan(IDS, 64)
    before = as_bytes(session.state_dict())
    with pytest.raises(ValueError, match="reward"):
        session.observe(0, ["p0", "p1"], rewards)
    assert as_bytes(session.state_dict()) == before


def test_rollouts_that_do_not_come_are_given_up() -> None:
    session = Session(BETA)
    plan = session.plan(IDS, 64)
    ids, rewards = rollouts(plan)
    assert session.observe(0, ids[:60], rewards[:60]) == {}
    assert session.give_up(0, ids[60:62]) == {}
    metrics = session.give_up(0)
    assert metrics["rollouts_lost"] == 4
    assert session.open_plans == []
    assert session.give_up(0) == {}


def test_an_id_that_stands_twice_in_a_plan_fills_its_groups_in_order() -> None:
    session = Session(BETA)
    plan = session.plan(["a", "b", "a"], 24)
    assert session.observe(0, ["a"] * 16, [1.0] * 8 + [0.0] * 8) == {}
    metrics = session.observe(0, ["b"] * 8, [1.0, 0.0] * 4)
    assert plan.counts_P.tolist() == [8, 8, 8]
    assert metrics["frac_prompts_mixed"] == pytest.approx(1 / 3)


def test_whole_plans_are_learned_in_the_order_of_planning() -> None:
    session = Session(BETA, in_order=True)
    plans = [session.plan(IDS, 64) for _ in range(2)]
    unseen = forecast_of(session)
    assert session.observe(1, *rollouts(plans[1])) == {}
    assert forecast_of(session) == unseen
    assert session.observe(0, *rollouts(plans[0]))
    assert session.open_plans == []
    assert forecast_of(session) != unseen


@pytest.mark.parametrize("in_order", [False, True])
def test_plans_under_way_are_part_of_the_state(tmp_path: Path, in_order: bool) -> None:
    through, stopped = Session(CALIBRATED, in_order=in_order), Session(CALIBRATED, in_order=in_order)
    for session in (through, stopped):
        plans = [session.plan(IDS, 64, features=LOOKS, texts={"p0": "hello"}) for _ in range(3)]
        ids, rewards = rollouts(plans[1])
        session.observe(1, ids[:20], rewards[:20], [7] * 20)
    stopped.save_to(tmp_path)
    resumed = Session(CALIBRATED, in_order=in_order)
    resumed.load_from(tmp_path)
    assert [plan.step for plan in resumed.open_plans] == [0, 1, 2]
    for session in (through, resumed):
        for plan in session.open_plans:
            ids, rewards = rollouts(plan)
            skip = 20 if plan.step == 1 else 0
            assert session.observe(plan.step, ids[skip:], rewards[skip:], [7] * (64 - skip))
    assert as_bytes(resumed.state_dict()) == as_bytes(through.state_dict())


def test_a_plan_of_an_earlier_process_is_reopened() -> None:
    first, second = Session(CALIBRATED), Session(CALIBRATED)
    plan = first.plan(IDS, 64, features=LOOKS)
    second.reopen(Plan.from_state(plan.state_dict()), {"p0": "hello"})
    assert second.step == 1
    for session in (first, second):
        session.observe(0, *rollouts(plan))
    assert as_bytes(first.state_dict()) == as_bytes(second.state_dict())


def test_a_run_is_restarted_at_an_earlier_step() -> None:
    """Open plans of that step and later are dropped, and their rollouts are not waited for."""
    session = Session(BETA)
    plans = [session.plan(IDS, 64) for _ in range(3)]
    session.restart_at(1)
    assert [plan.step for plan in session.open_plans] == [0]
    assert session.step == 1
    with pytest.raises(ValueError, match="not waited for"):
        session.observe(2, *rollouts(plans[2]))
    assert session.observe(0, *rollouts(plans[0]))
    assert session.plan(IDS, 64).step == 1


def test_of_several_plans_that_are_complete_the_largest_is_reported() -> None:
    session = Session(BETA, in_order=True)
    batch, refill = session.plan(IDS, 64), session.plan(["q"], 4, step=0)
    assert session.observe(0, ["q"] * 4, [1.0] * 4) == {}
    assert session.observe(0, *rollouts(batch))["candidates"] == len(IDS)
    assert (refill.step, session.step, session.open_plans) == (0, 1, [])


def test_a_plan_completed_again_after_a_resume_is_recorded_once(tmp_path: Path) -> None:
    """The plan was under way at the checkpoint, came back, and comes back again in the resumed run."""
    first = Session(BETA)
    first.open_trace(tmp_path / "trace.jsonl", {"engine": "test", "rule": "beta", "seed": 0, "settings": {}})
    plan = first.plan(IDS, 64)
    first.save_to(tmp_path)
    first.observe(0, *rollouts(plan))
    second = Session(BETA)
    second.load_from(tmp_path)
    second.open_trace(tmp_path / "trace.jsonl", {"engine": "test"})
    second.observe(0, *rollouts(plan, seed=1))
    (step,) = read_trace(tmp_path / "trace.jsonl").steps
    assert step.outcomes.rewards_PG.tolist() == rollouts(plan, seed=1)[1]


def test_threads_lose_nothing() -> None:
    """Four threads plan and observe at once, 57,600 observations: every rollout is counted exactly once."""
    for _ in range(2):
        session = Session(AllocationConfig(rule="beta", pool=1, half_life=1e9))
        errors: list[BaseException] = []

        def work(thread: int, session: Session = session, errors: list[BaseException] = errors) -> None:
            try:
                for batch in range(60):
                    ids = [f"{thread}-{batch}-{i}" for i in range(4)]
                    plan = session.plan(ids, 120)
                    session.observe(plan.step, [i for i in ids for _ in range(30)], [1.0, 0.0] * 60)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert session.step == 240
        ids = [f"{thread}-{batch}-{i}" for thread in range(4) for batch in range(60) for i in range(4)]
        assert isinstance(session.allocator, KnapsackAllocator)
        forecast = session.allocator.beliefs.forecast(ids, 240)
        np.testing.assert_allclose(forecast.pseudo_count_P, 31, rtol=1e-4)


def test_beliefs_alone_lose_nothing_either() -> None:
    """Without a session: observe and forecast from several threads, while the table grows."""
    beliefs = BetaBeliefs(half_life=1e9)
    wrong: list[int] = []

    def observe(thread: int) -> None:
        for j in range(60):
            beliefs.observe(Outcomes.of_groups(0, [(f"{thread}-{j}-{q}", [1.0, 0.0]) for q in range(4)]))
            known = [f"{thread}-{i}-{q}" for i in range(j + 1) for q in range(4)]
            wrong.append(int((abs(beliefs.forecast(known, 0).pseudo_count_P - 3) > 1e-3).sum()))

    threads = [threading.Thread(target=observe, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 240
    assert sum(wrong) == 0


def test_the_trace_of_a_resumed_session_is_one_story(tmp_path: Path) -> None:
    first = Session(BETA)
    first.open_trace(tmp_path / "trace.jsonl", {"engine": "test", "rule": "beta", "seed": 0, "settings": {}})
    run(first, 3)
    first.save_to(tmp_path)
    run(first, 2)  # done again after the resume
    second = Session(BETA)
    second.load_from(tmp_path)
    second.open_trace(tmp_path / "trace.jsonl", {"engine": "test"})
    plans = run(second, 4)
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert [step.plan.step for step in steps] == list(range(7))
    assert [step.plan.counts_P.tolist() for step in steps[3:]] == plans


def test_a_folder_without_state_leaves_all_unseen(tmp_path: Path) -> None:
    session = Session(BETA)
    assert not session.load_from(tmp_path, step_without_state=7)
    assert session.step == 7


def test_nothing_changes_when_a_checkpoint_cannot_be_used(tmp_path: Path) -> None:
    saved = Session(AllocationConfig(rule="paper"))
    run(saved, 2)
    saved.save_to(tmp_path)
    session = Session(BETA)
    run(session, 1)
    before = as_bytes(session.state_dict())
    with pytest.raises(BeliefFileError, match=r"knapsack_rl\.npz: it holds kind 'window', not 'beta'"):
        session.load_from(tmp_path)
    assert as_bytes(session.state_dict()) == before
    state = saved.state_dict()
    for damage in ("step", "open", "allocator", "kind"):
        with pytest.raises(BeliefFileError):
            session.load_state_dict({name: value for name, value in state.items() if name != damage})
    assert as_bytes(session.state_dict()) == before


def test_overhead_counts_only_our_own_time() -> None:
    import time

    session = Session(BETA)
    plan = session.plan(IDS, 64)
    time.sleep(0.3)  # the trainer generates
    with session.working():
        time.sleep(0.02)
    metrics = session.observe(0, *rollouts(plan))
    assert 0.02 <= metrics["overhead_seconds"] < 0.2


@pytest.mark.parametrize("wrong", [1.5, None, True, ("a",)])
def test_ids_are_text_or_whole_numbers(wrong: Any) -> None:
    with pytest.raises(TypeError, match="ids are text or whole numbers"):
        Session(BETA).plan(["a", wrong], 16)


def test_chats_as_text() -> None:
    assert as_text([{"role": "user", "content": "2+2"}]) == "user: 2+2"
    assert as_text("x" * 5000) == "x" * 2000
    assert as_text(["2", "+", "2"]) == "['2', '+', '2']"  # tokens, and no chat


def test_best_and_worst() -> None:
    assert best_and_worst([0.5, 1.0, 0.0]) == [1, 2]
    assert best_and_worst(np.array([np.nan, 0.0, 1.0])) == [2, 0]
    assert best_and_worst([1.0, 1.0]) == [0]


def test_the_optimizer_step_of_a_plan_under_way_is_saved(tmp_path: Path) -> None:
    """Otherwise the record of a plan that is given up after a resume has the wrong one."""
    session = Session(BETA)
    plan = session.plan(IDS, 64)
    ids, rewards = rollouts(plan)
    session.observe(plan.step, ids[:9], rewards[:9], optimizer_step=7)
    for damage in ({}, {"optimizer_step": "7"}):
        state = session.state_dict()
        state["open"][0] |= damage
        again = Session(BETA)
        if damage:
            with pytest.raises(BeliefFileError, match="optimizer step of a plan under way is '7'"):
                again.load_state_dict(state)
            continue
        again.load_state_dict(state)
        again.open_trace(tmp_path / "trace.jsonl", {"engine": "test", "rule": "beta", "seed": 0, "settings": {}})
        again.give_up(plan.step)
        [step] = read_trace(tmp_path / "trace.jsonl").steps
        assert step.optimizer_step == 7
