"""State on disk and in memory: complete or refused, never in part; inputs beyond what numbers hold are refused."""

from __future__ import annotations

import errno
import logging
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.soak import _content as content
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl import (
    AllocationConfig,
    BeliefFileError,
    BetaBeliefs,
    CalibratedBeliefs,
    KnapsackAllocator,
    Outcomes,
    PromptFeatures,
    Session,
)
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.files import complete_lines, parse_json, read_state, replacing, write_state
from knapsack_rl.session import STATE_FILE
from knapsack_rl.trace import TraceWriter, read_trace

BETA = AllocationConfig(rule="beta", pool=1)
RUN = {"engine": "test", "rule": "beta", "seed": 0, "settings": {}}


def step(session: Session, ids: tuple[str, ...] = ("a", "b")) -> None:
    plan = session.plan(ids, 8 * len(ids))
    session.observe(plan.step, [plan.prompt_ids[i] for i in plan.group_PG], [1.0, 0.0] * (plan.budget // 2))


def test_temporary_files_of_killed_processes_are_removed_by_the_next_save(tmp_path: Path) -> None:
    for _ in range(3):
        child = os.fork()
        if not child:
            with replacing(tmp_path / "b.npz") as file:
                file.write(b"half")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 3
    BetaBeliefs().save(tmp_path / "b.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["b.npz"]


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Also with one process id, as in two containers: the second save ends while the first is under way."""
    path = tmp_path / "b.npz"
    with replacing(path) as first:
        first.write(b"first")
        with replacing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        BetaBeliefs().save(tmp_path / "nowhere" / "b.npz")
    assert caught.value.filename == str(tmp_path / "nowhere" / "b.npz")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        BetaBeliefs().save(tmp_path / "b.npz")
    assert caught.value.filename == str(tmp_path / "b.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").write_bytes(b"old")
    BetaBeliefs().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    BetaBeliefs().load(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BeliefFileError, match="not a regular file"):
        BetaBeliefs().load(tmp_path / "pipe")


@given(st.integers(0, 60), st.binary(max_size=4))
def test_complete_lines_end_where_the_last_newline_is(start: int, tail: bytes) -> None:
    import tempfile

    whole = b"one\n\ntwo\n" * 3
    start = min(start, len(whole))
    with tempfile.NamedTemporaryFile() as file:
        file.write(whole + tail)
        file.flush()
        lines = list(complete_lines(file.name, start))
    joined = b"".join(line for _, line in lines)
    assert joined == (whole + tail)[start : start + len(joined)]
    assert b"\n" not in (whole + tail)[start + len(joined) :]
    assert all(end == start + sum(len(line) for _, line in lines[: i + 1]) for i, (end, _) in enumerate(lines))


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "1" * 5000, b"\xff", "", "{"])
def test_json_that_cannot_be_read_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("name", ["concentration", "combiner", "feature_model", "prompts"])
@pytest.mark.parametrize("change", ["gone", "text", "negative"])
def test_calibrated_beliefs_are_restored_as_a_whole_or_not_at_all(tmp_path: Path, name: str, change: str) -> None:
    saved, target = CalibratedBeliefs(), CalibratedBeliefs()
    saved.observe(Outcomes.of_groups(0, [("a", [1.0] * 8)]))
    target.observe(Outcomes.of_groups(0, [("q", [0.0] * 8)]))
    state, before = saved.state_dict(), content(target)
    inner = state if name == "concentration" else state[name]
    key = name if name == "concentration" else list(inner)[-1]
    if change == "gone":
        del inner[key]
    else:
        inner[key] = (
            "text"
            if change == "text"
            else np.full_like(inner[key], 3.0) * np.nan
            if inner[key].dtype.kind == "f"
            else inner[key][:0]
        )
    write_state(tmp_path / "b.npz", state)
    with pytest.raises(BeliefFileError):
        target.load(tmp_path / "b.npz")
    assert content(target) == before


def test_a_checkpoint_of_another_step_of_the_trainer_is_refused(tmp_path: Path) -> None:
    saved, session = Session(BETA), Session(BETA)
    step(saved)
    saved.save_to(tmp_path, trainer_step=4, adapter={"groups": [1, 2]})
    before = content(session)
    with pytest.raises(BeliefFileError, match=f"{STATE_FILE} is of step 4, and the trainer resumes at step 8"):
        session.load_from(tmp_path, trainer_step=8)
    assert content(session) == before
    state = session.load_from(tmp_path, trainer_step=4)
    assert state is not None
    assert state["adapter"] == {"groups": [1, 2]}
    assert session.step == 1


@pytest.mark.parametrize("in_order", [False, True])
def test_rollouts_that_the_allocator_could_not_learn_are_not_taken_in(in_order: bool) -> None:
    class Failing(KnapsackAllocator):
        fails = False

        def observe(self, outcomes: Outcomes) -> None:
            if self.fails:
                raise RuntimeError("no")
            super().observe(outcomes)

    failing, reference = Session(BETA, allocator=Failing(), in_order=in_order), Session(BETA, in_order=in_order)
    plans = [session.plan(["a", "b"], 16) for session in (failing, reference)]
    rows = [plans[0].prompt_ids[i] for i in plans[0].group_PG], [1.0, 0.0] * 8
    assert isinstance(failing.allocator, Failing)
    for part in (slice(0, 5), slice(5, 16)):
        before = content(failing)
        failing.allocator.fails = True
        if part.start or not in_order:
            with pytest.raises(RuntimeError):
                failing.observe(0, rows[0][part], rows[1][part])
            assert content(failing) == before
        failing.allocator.fails = False
        for session in (failing, reference):
            session.observe(0, rows[0][part], rows[1][part])
    assert failing.open_plans == []
    assert content(failing) == content(reference)


def test_a_sample_that_cannot_be_recorded_is_refused_before_anything_changes() -> None:
    session = Session(BETA)
    session.plan(["a"], 8)
    before = content(session)
    with pytest.raises(ValueError, match="an id and a completion"):
        session.observe(0, ["a"], [1.0], samples=[{"text": "x"}])
    assert content(session) == before


@pytest.mark.parametrize("kind", [BetaBeliefs, WindowBeliefs, CalibratedBeliefs])
@pytest.mark.parametrize("at", [2**31, 2**63, 10**30, -1, 1.5, True, None])
def test_steps_out_of_range_are_refused_and_change_nothing(kind: Any, at: Any) -> None:
    beliefs = kind()
    beliefs.observe(Outcomes.of_groups(2**31 - 1, [("a", [1.0, 0.0] * 500)]))
    before = content(beliefs)
    with pytest.raises(ValueError, match="the step is"):
        beliefs.observe(Outcomes.of_groups(at, [("a", [0.0]), ("b", [0.0])]))
    with pytest.raises(ValueError, match="the step is"):
        KnapsackAllocator(beliefs).plan(["a", "b"], 16, at)
    assert content(beliefs) == before


@pytest.mark.parametrize("size", [1e7, 1e154, 1e200, 1e308])
def test_features_of_any_size_are_right_and_confidence_is_refused(size: float) -> None:
    beliefs = CalibratedBeliefs()
    groups = {"step": 0, "prompt_ids": ("a", "b"), "counts_P": np.array([4, 4]), "rewards_PG": np.array([1.0, 0.0] * 4)}
    looks = np.array([[1.0, 2.0, 3.0], [3.0, -1.0, 2.0]])
    before = content(beliefs)
    with pytest.raises(ValueError, match="scale it"):
        beliefs.observe(Outcomes(**groups, features=PromptFeatures(looks, np.full((2, 1), size))))
    assert content(beliefs) == before
    small, large = CalibratedBeliefs(), CalibratedBeliefs()
    for each, factor in ((small, 1.0), (large, size / 4)):
        each.observe(Outcomes(**groups, features=PromptFeatures(looks * factor, np.zeros((2, 0)))))
    one = small.forecast(["a", "b"], 1, PromptFeatures(looks, np.zeros((2, 0))))
    two = large.forecast(["a", "b"], 1, PromptFeatures(looks * (size / 4), np.zeros((2, 0))))
    np.testing.assert_allclose(one.success_rates_P, two.success_rates_P, rtol=1e-9)


@pytest.mark.parametrize("prior", [(0.5, 1e-17), (1e-17, 1e-17), (0.0, 1.0), (1e300, 1.0), (float("nan"), 1.0)])
def test_priors_that_vanish_or_overflow_are_refused(prior: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="prior is"):
        BetaBeliefs(prior=prior)


def test_the_least_prior_plans_after_any_observations() -> None:
    beliefs = BetaBeliefs(prior=(1e-6, 1e-6))
    for at in range(5):
        beliefs.observe(Outcomes.of_groups(at, [("a", [1.0] * 1000), ("b", [0.0] * 1000)]))
    assert KnapsackAllocator(beliefs, max_count=1000).plan(["a", "b", "c"], 1200, 5).counts_P.sum() == 1200


@pytest.mark.parametrize(("budget", "most"), [(10**20, 128), (2**62, 2**62), (32, 10**20), (float("nan"), 128)])
def test_budgets_and_limits_beyond_what_sums_hold_are_refused(budget: Any, most: int) -> None:
    with pytest.raises(ValueError, match="budget|limit"):
        KnapsackAllocator(max_count=most).plan(list("abcd"), budget, 0)


def test_a_trace_that_cannot_be_opened_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file stands where its folder should be; later the way is free, and the trace says what is missing."""
    (tmp_path / "runs").write_text("in the way")
    session = Session(BETA)
    with caplog.at_level(logging.WARNING):
        session.open_trace(tmp_path / "runs" / "trace.jsonl", RUN)
        step(session)
        step(session)
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text
    (tmp_path / "runs").unlink()
    step(session)
    trace = read_trace(tmp_path / "runs" / "trace.jsonl")
    assert [each.plan.step for each in trace.steps] == [2]
    [lost] = trace.lost
    assert (lost.records, list(lost.steps)) == (2, [0, 1])


def test_a_damaged_trace_is_kept_and_the_resumed_run_goes_on_in_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    first = Session(BETA)
    first.open_trace(path, RUN)
    step(first)
    first.save_to(tmp_path)
    damaged = path.read_bytes().replace(b'"kind":"step"', b'"kind:"step"')
    path.write_bytes(damaged)
    second = Session(BETA)
    second.load_from(tmp_path)
    second.open_trace(path, RUN)
    step(second)
    assert (tmp_path / "trace.jsonl.1").read_bytes() == damaged
    assert [each.plan.step for each in read_trace(path).steps] == [1]


def test_what_is_no_regular_file_is_not_moved_aside(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with TraceWriter(tmp_path / "pipe", RUN):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_state_of_the_version_before_is_read(tmp_path: Path) -> None:
    import json

    beliefs = BetaBeliefs()
    beliefs.observe(Outcomes.of_groups(0, [("a", [1.0, 0.0])]))
    state = beliefs.state_dict()
    arrays = {f"array{i}": array for i, array in enumerate(state["prompts"].values())}
    prompts = {name: {"@array": f"array{i}"} for i, name in enumerate(state["prompts"])}
    header = {"format": "knapsack-rl state", "version": 2, "state": {**state, "prompts": prompts}}
    np.savez(tmp_path / "b.npz", header=np.array(json.dumps(header)), **arrays)
    other = BetaBeliefs()
    other.load(tmp_path / "b.npz")
    assert content(other) == content(beliefs)
    assert read_state(tmp_path / "b.npz")["kind"] == "beta"
    with np.load(tmp_path / "b.npz") as file:
        np.savez_compressed(tmp_path / "c.npz", **file)
    with pytest.raises(BeliefFileError, match="compressed"):
        other.load(tmp_path / "c.npz")
