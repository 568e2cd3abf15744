from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.notation import PromptFeatures
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.trace import End, Evaluation, Kept, Resume, RunStart, Step, Trace, TraceReader, TraceWriter, read_trace
from knapsack_rl.trace.looks import FeatureLog
from knapsack_rl.trace.records import decode

RUN = {"engine": "test", "rule": "beta", "seed": 0, "settings": {"lr": 1e-3, "bad": math.nan, "path": Path("x")}}
TIMES = {"overhead": 0.001, "step": 0.5}


def make_plan(step: int, pseudo_count: float = 2.0, price: float = 0.1) -> Plan:
    return Plan(
        step=step,
        prompt_ids=("a", "b", "c"),
        counts_P=np.array([4, 2, 0]),
        budget=6,
        low_P=np.array([2, 2, 0]),
        high_P=np.array([8, 8, 8]),
        success_rates_P=np.array([0.5, 1 / 3, 0.0]),
        pseudo_count_P=np.full(3, pseudo_count),
        seen_P=np.array([True, False, True]),
        price=price,
    )


def make_outcomes(step: int) -> Outcomes:
    return Outcomes.of_groups(step, [("a", [1.0, 0.0, math.nan, 0.1]), ("b", [0.0]), ("c", [])], success_threshold=0.5)


def add_step(writer: TraceWriter, step: int, **more: object) -> None:
    writer.step(make_plan(step), make_outcomes(step), optimizer_step=2 * step, seconds=TIMES, **more)  # type: ignore[arg-type]


def steps(trace: Trace) -> list[int]:
    return [step.plan.step for step in trace.steps]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "trace.jsonl"
    writer = TraceWriter(path, RUN)
    samples = [{"id": "a", "completion": "\ud800 <b> \u2028", "reward": 1.0}]
    add_step(writer, 0, texts={"a": "1+1?", "b": "2+2?"}, samples=samples)
    add_step(writer, 1, texts={"a": "1+1?"})
    writer.evaluation(2, 12, {"heldout/pass_rate": 0.5, "odd": math.nan}, rates={"a": 0.25})
    writer.end("finished")
    writer.end("finished")  # a second end is not a second record

    trace = read_trace(path)
    assert trace.run["rule"] == "beta"
    assert trace.run["version"] == 2
    assert trace.run["settings"] == {"lr": 1e-3, "bad": None, "path": "x"}
    assert trace.run["started"]
    assert (steps(trace), trace.ended) == ([0, 1], "finished")
    assert trace.texts == {"a": "1+1?", "b": "2+2?"}
    first, plan, outcomes = trace.steps[0], make_plan(0), make_outcomes(0)
    for name in ("prompt_ids", "budget", "step", "price"):
        assert getattr(first.plan, name) == getattr(plan, name)
    for name in ("counts_P", "low_P", "high_P", "success_rates_P", "pseudo_count_P", "seen_P"):
        np.testing.assert_array_equal(getattr(first.plan, name), getattr(plan, name))
    np.testing.assert_array_equal(first.outcomes.rewards_PG, outcomes.rewards_PG)
    np.testing.assert_array_equal(first.outcomes.counts_P, [4, 1, 0])
    assert first.outcomes.success_threshold == 0.5
    assert first.outcomes.tokens_PG is None
    assert first.samples == samples
    assert first.seconds == TIMES
    assert trace.steps[1].optimizer_step == 2
    assert trace.steps[1].texts == {}
    [evaluation] = trace.evals
    assert (evaluation.step, evaluation.rollouts, evaluation.rates) == (2, 12, {"a": 0.25})
    assert math.isnan(evaluation.metrics["odd"])
    assert len(path.read_text().splitlines()) == 5


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path, RUN) as writer:
        point = make_plan(0, pseudo_count=math.inf, price=math.nan)
        writer.step(point, make_outcomes(0), optimizer_step=0, seconds={"step": math.inf})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    [step] = read_trace(path).steps
    assert np.isinf(step.plan.pseudo_count_P).all()
    assert math.isnan(step.plan.price)


def test_tokens_survive(tmp_path: Path) -> None:
    outcomes = Outcomes(0, ("a", "b", "c"), np.array([2, 0, 1]), np.array([1.0, 0.0, 0.0]), np.array([5, 7, 9]))
    with TraceWriter(tmp_path / "t", RUN) as writer:
        writer.step(make_plan(0), outcomes, optimizer_step=0, seconds={})
    [step] = read_trace(tmp_path / "t").steps
    np.testing.assert_array_equal(step.outcomes.tokens_PG, [5, 7, 9])


def test_outcomes_of_other_prompts_are_refused_and_leave_no_line(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", RUN) as writer:
        with pytest.raises(ValueError, match="plan's order"):
            writer.step(make_plan(0), Outcomes.of_groups(0, [("a", [1.0])]), optimizer_step=0, seconds={})
        add_step(writer, 0, texts={"a": "?"})
    assert steps(read_trace(tmp_path / "t")) == [0]


def write_run(path: Path, upto: int) -> None:
    writer = TraceWriter(path, RUN)
    for step in range(upto):
        add_step(writer, step, texts={"a": "1+1?"})
        writer.evaluation(step + 1, 6 * (step + 1), {"x": step})
    writer.close()


def test_resume_supersedes_steps_from_there_on_and_evals_beyond(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_run(path, 5)
    writer = TraceWriter(path, RUN, resume_step=3)
    add_step(writer, 3, texts={"a": "1+1?", "b": "new"})
    writer.end("finished")
    trace = read_trace(path)
    assert steps(trace) == [0, 1, 2, 3]
    assert [evaluation.step for evaluation in trace.evals] == [1, 2, 3]
    assert trace.steps[-1].texts == {"b": "new"}  # the text of "a" is in the file already
    assert trace.ended == "finished"
    TraceWriter(path, RUN, resume_step=4).close()
    assert read_trace(path).ended is None  # it runs again


def test_kept_successes_are_read_by_step_and_superseded(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path, RUN) as writer:
        for step in range(4):
            add_step(writer, step)
            writer.kept(step, {"kept": 3.0, "kept_used": float(step)})
    with TraceWriter(path, RUN, resume_step=2) as writer:
        writer.kept(2, {"kept": 4.0, "kept_used": 7.0, "kept_age": 1.5})
    assert read_trace(path).kept == [
        Kept(0, {"kept": 3.0, "kept_used": 0.0}),
        Kept(1, {"kept": 3.0, "kept_used": 1.0}),
        Kept(2, {"kept": 4.0, "kept_used": 7.0, "kept_age": 1.5}),
    ]


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 5000))
def test_a_run_killed_at_any_byte_is_readable_and_can_go_on(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("kill") / "trace.jsonl"
    write_run(path, 3)
    whole = path.read_bytes()
    kept = whole[: max(len(whole) - cut, 0)]
    path.write_bytes(kept)
    before = read_trace(path)
    assert len(before.steps) >= sum(b'"kind":"step"' in line for line in kept.split(b"\n")[:-1])
    writer = TraceWriter(path, RUN, resume_step=1)
    add_step(writer, 1)
    writer.end("finished")
    after = read_trace(path)
    assert after.run["rule"] == "beta"
    assert steps(after) == ([0, 1] if before.steps else [1])
    assert after.ended == "finished"


def test_damage_in_the_middle_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_run(path, 2)
    lines = path.read_bytes().splitlines()
    lines[2] = lines[2][:40]
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ValueError, match=r"trace\.jsonl:3: "):
        read_trace(path)
    with pytest.raises(ValueError, match=r"trace\.jsonl:3: "):
        TraceWriter(path, RUN, resume_step=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt_id,pass_rate\na,0.5\n", ":1: "),
        ("[1, 2]\n", "not a record"),
        ('{"kind":"step","step":0}\n{"kind":"end"}\n', ":1: .*'"),
        (
            '{"kind":"run","version":99}\n{}\n',
            "version 99 of the format, and this library reads 2: read it with a newer",
        ),
        ('{"kind":"run","version":"2"}\n{}\n', "version '2' of the format"),
        ("PAR1\udcff\n", ":1: not a record of a trace: not UTF-8 text"),
        ('{"kind":"eval","step":0,"rollouts":0,"metrics":{}}\n{"kind":"end"}\n', "starts with a run record"),
    ],
)
def test_what_is_not_a_trace_is_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_trace(path)


def test_a_file_without_a_newline_that_is_no_trace_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("prompt_id")
    with pytest.raises(ValueError, match=r"notes\.txt:1: not a record"):
        TraceWriter(path, RUN, resume_step=1)
    assert path.read_text() == "prompt_id"


def test_an_empty_file_is_a_run_that_has_not_begun(tmp_path: Path) -> None:
    (tmp_path / "t").touch()
    trace = read_trace(tmp_path / "t")
    assert (trace.run, trace.steps, trace.ended) == ({}, [], None)


def test_unknown_kinds_are_skipped(tmp_path: Path) -> None:
    write_run(tmp_path / "t", 1)
    with (tmp_path / "t").open("a") as file:
        file.write('{"kind":"weather"}\n{"kind":"end","reason":"finished","seconds":1}\n')
    assert read_trace(tmp_path / "t").ended == "finished"


def test_a_new_run_moves_the_old_record_aside(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    for run in range(3):
        with TraceWriter(path, {**RUN, "seed": run}):
            pass
    seeds = [read_trace(tmp_path / name).run["seed"] for name in ("trace.jsonl.1", "trace.jsonl.2", "trace.jsonl")]
    assert seeds == [0, 1, 2]


def test_an_exception_ends_the_run_as_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TraceWriter(tmp_path / "t", RUN):
        raise KeyboardInterrupt
    assert read_trace(tmp_path / "t").ended == "interrupted"


def test_a_live_reader_sees_each_record_once_and_never_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    reader, trace = TraceReader(path), Trace(path)
    assert reader.poll() == []
    writer = TraceWriter(path, RUN)
    assert [type(record) for record in reader.poll()] == [RunStart]
    add_step(writer, 0)
    writer.evaluation(1, 6, {"x": 1.0})
    arrived = reader.poll()
    assert [type(record) for record in arrived] == [Step, Evaluation]
    for record in arrived:
        trace.add(record)
    assert steps(trace) == [0]
    with path.open("ab") as file:
        file.write(b'{"kind":"e')
        file.flush()
        assert reader.poll() == []
        file.write(b'nd","reason":"finished","seconds":2}\n')
    assert reader.poll() == [End("finished", 2)]
    assert reader.poll() == []
    writer.close()
    TraceWriter(path, RUN, resume_step=0).close()
    assert reader.poll() == [Resume(0)]
    TraceWriter(path, RUN).close()  # a new run under the same name
    assert [type(record) for record in reader.poll()] == [RunStart]


def test_the_look_of_a_plan_is_recorded_and_read(tmp_path: Path) -> None:
    """The one confidence of a plan, unknown ones too; files without it are read; several are of another kind."""
    looks = [np.array([[1.25], [np.nan], [-4.6]]), np.zeros((3, 0)), np.ones((3, 2)), None]
    writer = TraceWriter(tmp_path / "trace.jsonl", RUN)
    for step, look in enumerate(looks):
        features = None if look is None else PromptFeatures(np.zeros((3, 0)), look)
        plan = dataclasses.replace(make_plan(step), features=features)
        writer.step(plan, make_outcomes(step), optimizer_step=step, seconds=TIMES)
    writer.close()
    read = [step.log_odds_P for step in read_trace(tmp_path / "trace.jsonl").steps]
    assert read[1:] == [None, None, None]
    np.testing.assert_array_equal(read[0], [1.25, np.nan, -4.6])
    lines = (tmp_path / "trace.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    for wrong in ([1.25, None], "no"):
        with pytest.raises(ValueError, match="'log_odds' is .* a list of"):
            decode(json.dumps(record | {"log_odds": wrong}).encode())
    del record["log_odds"]
    earlier = decode(json.dumps(record).encode())
    assert isinstance(earlier, Step) and earlier.log_odds_P is None


def test_what_a_lost_record_said_of_prompts_is_written_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts and features are written once: a record that could not be written does not count."""
    features = PromptFeatures(np.array([[1.0, 2.0], [0.5, -1.0], [np.nan, np.nan]]), np.zeros((3, 1)))
    texts = {"a": "text of a", "b": "text of b", "c": "text of c"}
    writer = TraceWriter(tmp_path / "trace.jsonl", RUN)
    for step in range(3):
        with monkeypatch.context() as full:
            if step == 0:
                full.setattr("os.write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            plan = dataclasses.replace(make_plan(step), features=features)
            writer.step(plan, make_outcomes(step), optimizer_step=step, seconds=TIMES, texts=texts)
    writer.close()
    trace = read_trace(tmp_path / "trace.jsonl")
    assert (steps(trace), trace.texts) == ([1, 2], texts)
    assert_features_read(trace, [features, features])


def test_features_after_a_resume_replace_those_of_before(tmp_path: Path) -> None:
    """Also where they are unknown then, or of another number: a run may be resumed with other features."""
    known = PromptFeatures(np.array([[1.0, 2.0], [0.5, -1.0], [0.0, 1.0]]), np.zeros((3, 1)))
    unknown = PromptFeatures(np.full((3, 2), np.nan), np.zeros((3, 1)))
    none = PromptFeatures(np.zeros((3, 0)), np.zeros((3, 1)))
    given = [known, unknown, none, known]
    for step, features in enumerate(given):
        writer = TraceWriter(tmp_path / "trace.jsonl", RUN, resume_step=step or None)
        plan = dataclasses.replace(make_plan(step), features=features)
        writer.step(plan, make_outcomes(step), optimizer_step=step, seconds=TIMES)
        writer.close()
    assert_features_read(read_trace(tmp_path / "trace.jsonl"), given)


def assert_features_read(trace: Trace, expected: list[PromptFeatures]) -> None:
    log = FeatureLog()
    for step, features in zip(trace.steps, expected, strict=True):
        assert step.features is not None
        log.learn(step.plan.prompt_ids, step.features)
        read = log.look(step.plan.prompt_ids, step.features, step.log_odds_P)
        np.testing.assert_array_equal(read.features_P_F, features.features_P_F)
