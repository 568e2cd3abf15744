"""Tables of recorded rollouts: the same from any format, every rollout at most once, errors that name the row."""

from __future__ import annotations

import json
import tracemalloc
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("polars")

import polars as pl

from knapsack_arena.registry import RuleContext, make_strategy
from knapsack_arena.replay.replay import ReplayedRule, replay_steps, replay_table
from knapsack_arena.replay.table import Table, read_batches, read_table
from knapsack_arena.strategies import Batch, RolloutRequest, StepGenerator, StepSpec
from knapsack_rl.beliefs.ids import content_id
from knapsack_rl.outcomes import Outcomes

LONG_TEXT = "What is 1+1? " * 20


def rewards_of(table: Table) -> dict[str, list[float]]:
    return {
        prompt_id: table.rewards_R[table.prompt_R == row].tolist() for row, prompt_id in enumerate(table.prompt_ids)
    }


def read(path: Path) -> Table:
    return read_table(path)


# ------------------------------------------------------------------------------------------------ reading

GROUPS = {"a": [1.0, 0.0, 0.5], "b": [0.0], LONG_TEXT: [1.0, nan]}
LENGTHS = {"a": [5, 6, 7], "b": [8], LONG_TEXT: [9, 10]}


def write_lists(path: Path) -> None:
    rows = [{"prompt": prompt, "rewards": rewards, "tokens": LENGTHS[prompt]} for prompt, rewards in GROUPS.items()]
    match path.suffix:
        case ".parquet":
            pl.DataFrame(rows).with_columns(other=pl.lit("x")).write_parquet(path)
        case ".jsonl":
            clean = [row | {"rewards": [None if isnan(r) else r for r in row["rewards"]]} for row in rows]
            path.write_text("\n".join(json.dumps(row) for row in clean) + "\n\n")
        case ".csv":
            frame = pl.DataFrame(
                [row | {name: json.dumps(row[name]) for name in ("rewards", "tokens")} for row in rows]
            )
            frame.write_csv(path)


def write_rollouts(path: Path) -> None:
    """A row per rollout, in turns: a, b, text, a, text, a."""
    order = [("a", 0), ("b", 0), (LONG_TEXT, 0), ("a", 1), (LONG_TEXT, 1), ("a", 2)]
    rows = [{"id": prompt, "reward": GROUPS[prompt][i], "tokens": LENGTHS[prompt][i]} for prompt, i in order]
    match path.suffix:
        case ".parquet":
            pl.DataFrame(rows).write_parquet(path)
        case ".jsonl":
            clean = [row | {"reward": None if isnan(row["reward"]) else row["reward"]} for row in rows]
            path.write_text("\n".join(json.dumps(row) for row in clean))
        case ".csv":
            pl.DataFrame(rows).write_csv(path)


@pytest.mark.parametrize("write", [write_lists, write_rollouts])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_every_form_of_a_table_reads_alike(tmp_path: Path, suffix: str, write) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / f"table{suffix}"
    write(path)
    table = read(path)
    assert table.prompt_ids == ("a", "b", content_id(LONG_TEXT))  # a prompt's text is named by its hash
    for prompt_id, rewards in zip(table.prompt_ids, GROUPS.values(), strict=True):
        np.testing.assert_array_equal(rewards_of(table)[prompt_id], rewards)
    assert table.tokens_R is not None
    assert [table.tokens_R[table.prompt_R == row].tolist() for row in range(3)] == list(LENGTHS.values())
    assert table.step_R is None


def test_batches_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knapsack_arena.replay.table.BATCH", 3)
    rows = [("q", i % 5, float(i % 2)) for i in range(11)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"prompt": f"q{i}", "reward": r}) + "\n" for _, i, r in rows))
    pl.DataFrame({"prompt": [f"q{i}" for _, i, _ in rows], "reward": [r for *_, r in rows]}).write_csv(
        tmp_path / "t.csv"
    )
    assert len(list(read_batches(tmp_path / "t.jsonl"))) == 4
    one, other = read(tmp_path / "t.jsonl"), read(tmp_path / "t.csv")
    assert rewards_of(one) == rewards_of(other)
    assert rewards_of(one)["q0"] == [0, 1, 0]


def test_numbers_that_are_equal_are_one_prompt(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt_id":7,"rewards":[1]}\n{"prompt_id":7.0,"rewards":[0]}\n')
    pl.DataFrame({"prompt_id": [7.0, 7.0], "reward": [1, 0]}).write_parquet(tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        assert {key: sorted(rewards) for key, rewards in rewards_of(read(tmp_path / name)).items()} == {"7": [0, 1]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "t.jsonl",
            '{"prompt":"a","rewards":[1]}\n{"prompt":"b","rewards":["[red]"]}\n',
            r"jsonl:2: rewards is '\[red\]'",
        ),
        ("t.jsonl", '{"prompt":"a","rewards":[1]}\n{"prompt":"b"}\n', "jsonl:2: no `rewards`, which the first row has"),
        ("t.jsonl", '{"prompt":"a","rewards":[1]}\n{"prompt"', "jsonl:2: not JSON"),
        ("t.jsonl", '{"prompt":"a","rewards":1}\n', "jsonl:1: rewards is 1, not a list"),
        ("t.jsonl", '{"prompt":"a","rewards":[1,0],"tokens":[4]}\n', "jsonl:1: 2 rewards but 1 token counts"),
        ("t.jsonl", '{"prompt":"a","rewards":[1],"tokens":[-4]}\n', "jsonl:1: tokens is -4: it must be a whole number"),
        ("t.jsonl", '{"prompt":"","reward":1}\n', "jsonl:1: prompt is '': every row needs a prompt"),
        ("t.jsonl", '{"prompt":"a","reward":1,"step":null}\n', "jsonl:1: step is nan: it must be a whole number"),
        ("t.jsonl", '{"text":"a","reward":1}\n', "no column `prompt` .*; the columns are: text, reward"),
        ("t.jsonl", "", "the table holds no rollouts"),
        ("t.csv", "prompt,reward\na,1\nb,good\n", "csv:3: reward is 'good', not a number"),
        ("t.csv", "prompt,reward\na,inf\n", "csv:2: reward is inf: it must be finite"),
        ("t.csv", 'prompt,rewards\na,"[1,0"\n', "csv:2: rewards is '\\[1,0', not a list of numbers"),
        ("t.csv", "prompt,score\na,1\n", "csv:2: no column `rewards` .*; the columns are: prompt, score"),
        ("t.csv", "prompt,reward\na,\xff\udcff\n", "csv is not UTF-8 text"),
        ("t.csv", "prompt,reward\na,1,2\n", "csv:2: the header has 2 columns, this row another number"),
        ("t.parquet", "PAR1 and no more", "parquet: "),
        ("t.txt", "prompt,reward\n", "a table is a .csv, .jsonl or .parquet file"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_long_completion_in_the_way_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('prompt,answer,reward\na,"' + "long\n" * 60_000 + '",1\nb,short,\n')
    table = read(path)
    assert table.prompt_ids == ("a", "b")
    np.testing.assert_array_equal(table.rewards_R, [1, nan])  # an empty cell is no answer


def test_reading_keeps_numbers_only(tmp_path: Path) -> None:
    """A table with 2 MB of texts beside 20,000 rewards leaves 100 kB, and never needs the texts."""
    path = tmp_path / "t.parquet"
    prompts = [f"q{i % 50}" for i in range(20_000)]
    pl.DataFrame({"prompt": prompts, "reward": np.arange(20_000) % 2.0, "answer": ["x" * 100] * 20_000}).write_parquet(
        path
    )
    tracemalloc.start()
    table = read(path)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table.rewards_R.size == 20_000
    assert kept < 400_000


@pytest.mark.parametrize("long", ["prompt", "answer"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_reading_text_holds_one_row_at_a_time(suffix: str, long: str, tmp_path: Path) -> None:
    """Fewer rows than a batch has, of 16 MB together: a batch of whole rows would be the whole file."""
    path, text = tmp_path / f"t{suffix}", "x" * 40_000
    rows = [{"prompt": f"q{i}", "reward": i % 2, "answer": ""} for i in range(400)]
    for row in rows:
        row[long] = f"{row[long]}{text}"
    if suffix == ".csv":
        pl.DataFrame(rows).write_csv(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read(path)  # fills caches
    tracemalloc.start()
    table = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 16_000_000
    assert (table.rewards_R.size, len(table.prompt_ids)) == (400, 400)
    assert peak < 2_000_000


# ------------------------------------------------------------------------------------------------ replaying


def table_of(sizes: list[int]) -> Table:
    """Rewards that tell every rollout from every other."""
    prompts = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    return Table(
        tuple(f"q{i}" for i in range(len(sizes))), prompts, np.arange(prompts.size, dtype=np.float32), None, None
    )


class Recorder:
    """Equal counts of ``take`` prompts; remembers what it saw."""

    def __init__(self, take: int, count: int) -> None:
        self.count, self.wanted = count, take
        self.taken: list[tuple[str, ...]] = []
        self.seen: list[Outcomes] = []

    def step(self, spec: StepSpec) -> StepGenerator:
        ids = spec.take(self.wanted)
        self.taken.append(ids)
        outcomes = yield RolloutRequest(ids, np.full(len(ids), self.count))
        self.seen.append(outcomes)
        return Batch(outcomes)


def replay(table: Table, rule: Recorder, steps: int, seed: int = 0) -> ReplayedRule:
    replayed = ReplayedRule("recorder", rule)  # type: ignore[arg-type]
    context = RuleContext(groups=rule.wanted, average=rule.count, prompts=len(table.prompt_ids), seed=seed)
    results = list(replay_table(table.rollouts(seed, 1.0), [replayed], context, steps))
    assert [step for _, step, _ in results] == list(range(len(rule.seen)))
    return replayed


def test_every_rollout_is_drawn_once_and_then_the_prompt_is_skipped() -> None:
    table, rule = table_of([6] * 6), Recorder(take=3, count=4)
    replayed = replay(table, rule, steps=10)
    drawn = [reward for outcomes in rule.seen for reward in outcomes.rewards_PG.tolist()]
    assert sorted(drawn) == list(range(36))
    assert len(rule.seen) == 4
    # Two passes over all six: 4 rollouts each, then the 2 that are left.
    for one_pass, got in ((rule.taken[:2], 4), (rule.taken[2:], 2)):
        assert sorted(id_ for ids in one_pass for id_ in ids) == list(table.prompt_ids)
        assert all((outcomes.counts_P == got).all() for outcomes in rule.seen[:2] if got == 4)
    assert replayed.stopped_reason == "stopped at step 4: it takes 3 prompts, and 0 more have rollouts left"


def test_a_seed_fixes_every_draw() -> None:
    replays = []
    for seed in (0, 0, 1):
        rule = Recorder(take=2, count=2)
        replay(table_of([4] * 8), rule, steps=4, seed=seed)
        replays.append([(outcomes.prompt_ids, outcomes.rewards_PG.tolist()) for outcomes in rule.seen])
    assert replays[0] == replays[1] != replays[2]


def test_what_another_rule_does_changes_nothing() -> None:
    rollouts = table_of([8] * 8).rollouts(0, 1.0)
    context = RuleContext(groups=4, average=2, prompts=8)
    replays = []
    for names in (["beta"], ["uniform", "beta", "paper"]):
        rules = [ReplayedRule(name, make_strategy(name, context)) for name in names]
        results = replay_table(rollouts, rules, context, 6)
        replays.append([metrics.values for name, _, metrics in results if name == "beta"])
    for one, other in zip(*replays, strict=True):
        assert one == pytest.approx(other, nan_ok=True)


def test_a_pass_that_ends_within_a_step_goes_on_with_the_next_and_takes_no_prompt_twice() -> None:
    rule = Recorder(take=3, count=1)
    replay(table_of([9] * 4), rule, steps=8)
    for ids in rule.taken:
        assert len(set(ids)) == 3
    assert set(rule.taken[0]) | {rule.taken[1][0]} == {"q0", "q1", "q2", "q3"}


def test_a_table_with_steps_is_replayed_as_it_was_recorded() -> None:
    table = Table(
        ("a", "b", "c"),
        np.array([2, 0, 2, 1, 0, 0], dtype=np.int32),
        np.array([1, 0, 0, 1, 0.5, 0], dtype=np.float32),
        None,
        np.array([1, 7, 1, 7, 1, 7], dtype=np.int32),
    )
    one, seven = table.steps(success_threshold=0.5)
    assert (one.outcomes.step, one.outcomes.prompt_ids, one.budget) == (1, ("c", "a"), 3)
    assert one.outcomes.rewards_PG.tolist() == [1, 0, 0.5]
    assert one.outcomes.successes_P.tolist() == [1, 1]
    assert (seven.outcomes.step, seven.outcomes.prompt_ids) == (7, ("a", "b"))
    assert seven.planned_P.tolist() == [2, 1]
    rule = Recorder(take=2, count=1)
    results = list(replay_steps([one, seven], [ReplayedRule("r", rule)], seed=0))  # type: ignore[arg-type]
    assert [(name, step) for name, step, _ in results] == [("(recorded)", 1), ("r", 1), ("(recorded)", 7), ("r", 7)]
    assert rule.taken == [("c", "a"), ("a", "b")]
    assert results[3][2].values["overlap"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no column `step`"):
        next(table_of([1]).steps(1.0))
