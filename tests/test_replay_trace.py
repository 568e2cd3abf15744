"""Replaying a trace: the rule that made it repeats its plans, and memory does not grow with the trace."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.registry import make_strategy
from knapsack_arena.replay.replay import RECORDED, ReplayedRule, replay_steps
from knapsack_arena.replay.trace import ExactRates, RecordedTrace
from knapsack_arena.strategies import OneRound, RolloutRequest, StepGenerator, StepSpec
from knapsack_rl.config import AllocationConfig, RuleName
from knapsack_rl.metrics import MAX_TEXT
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.session import Session
from knapsack_rl.trace import TraceWriter, read_trace
from synthetic_run import AVERAGE, GROUPS, PROMPTS, record_run

RULES: tuple[RuleName, ...] = ("uniform", "paper", "beta", "calibrated")


class Spy:
    """A strategy that keeps the requests and outcomes of the one inside it."""

    def __init__(self, inner: object) -> None:
        self.inner, self.rounds = inner, []

    def step(self, spec: StepSpec) -> StepGenerator:
        steps = self.inner.step(spec)
        request = next(steps)
        while True:
            outcomes = yield request
            self.rounds.append((request, outcomes))
            try:
                request = steps.send(outcomes)
            except StopIteration as done:
                return done.value


def replayed(path: Path, *names: str, seed: int = 0) -> list[Spy]:
    recording = RecordedTrace(path)
    context = recording.context(seed)
    spies = [Spy(make_strategy(name, context)) for name in names]
    rules = [ReplayedRule(name, spy) for name, spy in zip(names, spies, strict=True)]
    list(replay_steps(recording, rules, seed))
    assert [rule.stopped_reason for rule in rules] == [None] * len(names)
    return spies


def session_run(path: Path, rule: RuleName, steps: int = 30) -> None:
    """A run through the real session, with groups that come back short and answers that do not come."""
    rng = np.random.default_rng(5)
    config = AllocationConfig(rule, average=AVERAGE, pool=1, min_count=2, max_count=32)
    session = Session(config, steps_per_pass=PROMPTS / GROUPS)
    settings = {"num_generations": AVERAGE, "min_count": 2, "max_count": 32}
    session.open_trace(path, {"engine": "test", "rule": rule, "seed": 0, "settings": settings})
    rates = rng.beta(0.5, 0.7, PROMPTS)
    for step in range(steps):
        # First one pass over all prompts, then any.
        one_pass = step < PROMPTS // GROUPS
        rows = np.arange(GROUPS) + step * GROUPS if one_pass else rng.choice(PROMPTS, GROUPS, replace=False)
        plan = session.plan([f"q{row}" for row in rows], GROUPS * AVERAGE)
        got = np.where(rng.random(GROUPS) < 0.1, plan.counts_P // 2, plan.counts_P)
        rewards = (rng.random(got.sum()) < np.repeat(rates[rows], got)).astype(float)
        rewards[rng.random(rewards.size) < 0.05] = np.nan
        tokens = rng.integers(1, 900, rewards.size)
        ids_PG = np.repeat(np.array(plan.prompt_ids), got)
        session.observe(step, ids_PG, rewards, tokens, optimizer_step=step)
        session.give_up(step)
    session.trace.end("finished")


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_that_made_a_trace_plans_what_it_planned_bit_for_bit(tmp_path: Path, rule: RuleName) -> None:
    path = tmp_path / "trace.jsonl"
    session_run(path, rule)
    [spy] = replayed(path, rule, seed=11)
    steps = read_trace(path).steps
    assert len(spy.rounds) == len(steps) == 30
    for (request, outcomes), step in zip(spy.rounds, steps, strict=True):
        assert request.prompt_ids == step.plan.prompt_ids
        np.testing.assert_array_equal(request.counts_P, step.plan.counts_P)
        np.testing.assert_array_equal(request.success_rates_P, step.plan.success_rates_P)
        np.testing.assert_array_equal(request.pseudo_count_P, step.plan.pseudo_count_P)
        np.testing.assert_array_equal(outcomes.counts_P, step.outcomes.counts_P)
        np.testing.assert_array_equal(outcomes.rewards_PG, step.outcomes.rewards_PG)
        np.testing.assert_array_equal(outcomes.tokens_PG, step.outcomes.tokens_PG)


def test_the_same_score_as_what_happened(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    session_run(path, "beta", steps=6)
    recording = RecordedTrace(path)
    rule = ReplayedRule("beta", make_strategy("beta", recording.context()))
    results = list(replay_steps(recording, [rule], 0))
    for (name, step, metrics), (replayed_name, again, mine) in zip(results[::2], results[1::2], strict=True):
        assert (name, replayed_name, step) == (RECORDED, "beta", again)
        assert mine.values == pytest.approx(metrics.values, nan_ok=True)
        assert (mine.values["same_plan"], mine.values["overlap"]) == (1, 1)


def test_every_rule_plans_before_it_sees_the_step(tmp_path: Path) -> None:
    """Turning the last step's answers round changes nothing that was planned."""
    path, turned = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    session_run(path, "uniform", steps=12)
    lines = path.read_text().splitlines(keepends=True)
    record = json.loads(lines[12])
    assert record["step"] == 11
    record["rewards"] = [None if reward is None else 1 - reward for reward in record["rewards"]]
    turned.write_text("".join([*lines[:12], json.dumps(record, separators=(",", ":")) + "\n"]))
    for one, other in zip(*(replayed(file, "beta", "paper") for file in (path, turned)), strict=True):
        for (request, _), (again, _) in zip(one.rounds, other.rounds, strict=True):
            np.testing.assert_array_equal(request.counts_P, again.counts_P)


# ------------------------------------------------------------------------------------------------ the file


def numbers(recording: RecordedTrace) -> list[int]:
    return [step.outcomes.step for step in recording]


def add_step(writer: TraceWriter, step: int, reward: float = 1.0, ids: tuple[str, ...] = ("a", "b")) -> None:
    size = len(ids)
    plan = Plan(
        step, ids, np.full(size, 2), 2 * size, np.full(size, 2), np.full(size, 8), np.full(size, 0.5), np.ones(size),
        np.ones(size, dtype=bool),
    )  # fmt: skip
    writer.step(plan, Outcomes.of_groups(step, [(i, [reward, 0.0]) for i in ids]), optimizer_step=step, seconds={})


def test_steps_that_were_done_again_after_a_resume_count_once(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    writer = TraceWriter(path, {"rule": "uniform"})
    for step in range(4):
        add_step(writer, step, reward=0.25)
    writer.evaluation(1, 4, {}, {"a": 0.1})
    writer.evaluation(4, 16, {}, {"a": 0.9})
    writer.close()
    for resume in (2, 3):
        writer = TraceWriter(path, {}, resume_step=resume)
        for step in range(resume, 5):
            add_step(writer, step, reward=resume)
        writer.close()
    recording, trace = RecordedTrace(path), read_trace(path)
    assert numbers(recording) == [0, 1, 2, 3, 4] == [step.plan.step for step in trace.steps]
    assert [step.outcomes.rewards_PG[0] for step in recording] == [0.25, 0.25, 2, 3, 3]
    # What was measured at step 1 stands; what was measured at step 4 was of a policy that was given up.
    assert recording.rates(4) == {"a": 0.1}
    assert recording.rates(0) == {}


def test_a_plan_that_was_open_in_the_checkpoint_counts_as_completed_after_the_resume(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    writer = TraceWriter(path, {"rule": "uniform"})
    for step, ids in ((0, ("a", "b")), (1, ("c", "d")), (0, ("e", "f"))):
        add_step(writer, step, reward=0.25, ids=ids)
    writer.close()
    writer = TraceWriter(path, {}, resume_step=2)
    add_step(writer, 0, reward=0.75, ids=("e", "f"))
    add_step(writer, 2, ids=("a", "b"))
    writer.close()
    recording, trace = RecordedTrace(path), read_trace(path)
    assert [step.plan.prompt_ids for step in trace.steps] == [("a", "b"), ("c", "d"), ("e", "f"), ("a", "b")]
    assert [step.outcomes.prompt_ids for step in recording] == [step.plan.prompt_ids for step in trace.steps]
    assert [step.outcomes.rewards_PG[0] for step in recording] == [0.25, 0.25, 0.75, 1.0]


def test_lines_in_another_form_are_read_all_the_same(tmp_path: Path) -> None:
    path, loose = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    record_run(path, "beta", steps=5)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    loose.write_text("".join(json.dumps(dict(reversed(line.items()))) + "\n\n" for line in lines).replace("\n\n", "\n"))
    one, other = RecordedTrace(path), RecordedTrace(loose)
    assert (one.prompts, numbers(one), one.run) == (other.prompts, numbers(other), other.run)
    for step, again in zip(one, other, strict=True):
        np.testing.assert_array_equal(step.outcomes.rewards_PG, again.outcomes.rewards_PG)


def test_a_last_line_that_a_kill_cut_off_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    record_run(path, "uniform", steps=4, exact=False, ended=None)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert numbers(RecordedTrace(path)) == [0, 1, 2]
    assert len(read_trace(path).steps) == 3


@pytest.mark.parametrize("keep_head", [True, False])
def test_a_damaged_line_is_named(tmp_path: Path, keep_head: bool) -> None:
    path = tmp_path / "trace.jsonl"
    record_run(path, "uniform", steps=4, exact=False)
    lines = path.read_bytes().splitlines(keepends=True)
    # With its head and its end intact the damage is deep in the line.
    lines[2] = lines[2].replace(b'"rewards":[', b'"rewards":[oops,') if keep_head else lines[2][:300] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=r"trace\.jsonl:3: "):
        list(RecordedTrace(path))


@pytest.mark.parametrize("content", ["", '{"kind":"run","version":2}\n', '{"kind":"step"}\n{}\n', '{"kind":"ru'])
def test_a_file_without_steps_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"trace\.jsonl"):
        RecordedTrace(path)


def test_any_text_survives(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    ids = ('"ids":["x"],"counts":', "[red]\u2028\x1b[31m", "ünï\\\n")
    with TraceWriter(path, {"rule": "[bold]"}) as writer:
        add_step(writer, 0, ids=ids)
    recording = RecordedTrace(path)
    assert recording.prompts == 3
    assert next(iter(recording)).outcomes.prompt_ids == ids


# ---------------------------------------------------------------------------------------- what rules are given


def test_the_setting_is_that_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    settings = {"min_generations": 0, "max_generations": 64, "half_life": 12.0}
    with TraceWriter(path, {"rule": "uniform", "settings": settings}) as writer:
        add_step(writer, 0)
    context = RecordedTrace(path).context(seed=3)
    assert (context.groups, context.average, context.min_count, context.max_count) == (2, 2, 0, 64)
    assert (context.half_life, context.seed) == (12.0, 3)
    context = RecordedTrace(path).context(min_count=2, max_count=9, prompts=100)
    assert (context.min_count, context.max_count, context.prompts) == (2, 9, 100)


def test_without_a_half_life_the_prompts_of_the_trace_set_it(tmp_path: Path) -> None:
    path = record_run(tmp_path / "trace.jsonl", "uniform", steps=8)
    assert RecordedTrace(path).context().prompts == PROMPTS


def test_the_oracle_knows_what_was_measured_and_no_more(tmp_path: Path) -> None:
    path = record_run(tmp_path / "trace.jsonl", "uniform", steps=24)
    recording = RecordedTrace(path)
    truth = ExactRates(recording)
    evaluations = read_trace(path).evals
    for step in (0, 1, 2, 3, 23):
        truth.step = step
        latest = [evaluation for evaluation in evaluations if evaluation.step <= step][-1]
        np.testing.assert_array_equal(truth(["q003", "q001"]), [latest.rates["q003"], latest.rates["q001"]])
    with pytest.raises(ValueError, match="step 23 has the exact success rate of 'q999'"):
        truth(["q999"])


class Greedy:
    """Takes once more than the step recorded."""

    def step(self, spec: StepSpec) -> StepGenerator:
        ids = spec.take(spec.groups)
        yield RolloutRequest(ids, np.full(len(ids), 2))
        spec.take(1)
        raise AssertionError("not reached")


def test_a_rule_that_takes_other_prompts_stops_and_the_others_go_on(tmp_path: Path) -> None:
    recording = RecordedTrace(record_run(tmp_path / "trace.jsonl", "uniform", steps=3))
    context = recording.context()
    greedy, pool = (
        ReplayedRule("greedy", Greedy()),
        ReplayedRule("pool", OneRound(AllocationConfig(pool=2).make_allocator(), pool=2)),
    )  # type: ignore[arg-type]
    uniform = ReplayedRule("uniform", make_strategy("uniform", context))
    results = [(name, step) for name, step, _ in replay_steps(recording, [greedy, pool, uniform], 0)]
    assert results == [(name, step) for step in range(3) for name in (RECORDED, "uniform")]
    assert uniform.stopped_reason is None
    for rule in (greedy, pool):
        assert rule.stopped_reason is not None
        assert "more prompts than the 32 that the step recorded" in rule.stopped_reason


# ------------------------------------------------------------------------------------------------ memory


def write_long_trace(path: Path, steps: int, groups: int = 64, size: int = 8) -> None:
    """A valid trace of any length, quickly: one recorded step under many numbers, padded with completions."""
    rng = np.random.default_rng(0)
    ids = tuple(f"prompt-{i}" for i in range(groups))
    plan = Plan(
        0, ids, np.full(groups, size), groups * size, np.full(groups, 2), np.full(groups, 64), np.full(groups, 0.5),
        np.ones(groups), np.ones(groups, dtype=bool),
    )  # fmt: skip
    rewards = (rng.random(groups * size) < 0.4).astype(float)
    with TraceWriter(path, {"rule": "uniform"}) as writer:
        samples = [{"id": ids[0], "completion": "x" * MAX_TEXT, "reward": 0.0}] * 30
        outcomes = Outcomes(0, ids, plan.counts_P, rewards)
        writer.step(plan, outcomes, optimizer_step=0, seconds={}, samples=samples)
    line = path.read_bytes().splitlines(keepends=True)[1]
    with path.open("ab") as file:
        for step in range(1, steps):
            file.write(line.replace(b'"step":0,', b'"step":%d,' % step, 1))


def peak_of_replay(path: Path) -> int:
    """Bytes allocated at most while the trace is replayed, in Python and numpy."""
    tracemalloc.start()
    try:
        recording = RecordedTrace(path)
        rules = [ReplayedRule(name, make_strategy(name, recording.context())) for name in ("uniform", "beta")]
        for _ in replay_steps(recording, rules, 0):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    write_long_trace(short, 10, groups=16)
    write_long_trace(long, 120, groups=16)
    peaks = [peak_of_replay(path) for path in (short, short, long)]  # the first fills caches
    grown = long.stat().st_size - short.stat().st_size
    assert grown > 6_000_000
    assert peaks[2] - peaks[1] < 500_000  # the places of 110 steps, and garbage not yet collected


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_trace_of_400_mb_needs_the_memory_of_one_of_50(tmp_path: Path) -> None:
    """Through the command, with its output files, as the system counts it."""
    code = (
        "import resource, sys\nfrom knapsack_rl.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]) or print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr))"
    )
    peaks = []
    for steps in (530, 4240):
        path = tmp_path / f"{steps}.jsonl"
        write_long_trace(path, steps, groups=512, size=8)
        words = [
            "replay",
            path,
            "--rules",
            "uniform,beta",
            "--output",
            tmp_path / "o.json",
            "--output",
            tmp_path / "o.parquet",
        ]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        peaks.append(int(done.stderr.split()[-1]) / 1024)
        print(f"{path.stat().st_size / 1e6:.0f} MB: {peaks[-1]:.0f} MB resident at most")
        path.unlink()
    assert peaks[1] - peaks[0] < 25
