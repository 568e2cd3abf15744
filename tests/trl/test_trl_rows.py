"""A task is a row: whatever a data set is like, no row is lost, and ``rule="uniform"`` trains what stock TRL trains."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from datasets import Dataset, Features, Image, IterableDataset, List, Value, concatenate_datasets

from knapsack_rl import content_id
from knapsack_rl.session import STATE_FILE
from knapsack_rl.trace import read_trace
from knapsack_rl.trl.rows import ROW_NUMBER, NumberedRows, RowIds, fresh, numbered

# What KnapsackGRPOConfig says without a word.
DEFAULTS: dict[str, Any] = {"rule": "calibrated", "pool": None, "group_weighting": None}
ANSWERS = [small.LETTERS[: 1 + i % 6] for i in range(12)]


def same_prompt(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict({"prompt": ["ab="] * 12, "answer": ANSWERS} | columns)


def drawn_at_random() -> Dataset:
    """A transform that makes the prompt, and another one each time."""
    draw = random.Random(7)

    def transform(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        prompts = [small.LETTERS[n % 8] + draw.choice(small.LETTERS) + "=" for n in batch["n"]]
        return {"prompt": prompts, "answer": [ANSWERS[n] for n in batch["n"]]}

    return Dataset.from_dict({"n": list(range(12))}).with_transform(transform)


def with_locks() -> Dataset:
    """Rows that can be neither copied nor hashed."""
    data = small.dataset()

    def transform(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            "prompt": batch["prompt"],
            "answer": batch["answer"],
            "lock": [threading.Lock() for _ in batch["answer"]],
        }

    return data.with_transform(transform)


def with_more_keys() -> Dataset:
    rows = [{"prompt": [{"role": "user", "content": small.LETTERS[i % 8]}], "answer": ANSWERS[i]} for i in range(12)]
    rows[5]["prompt"][0]["name"] = "bob"
    return Dataset.from_list(rows)


def stream(times: int = 1) -> IterableDataset:
    rows = [{name: value for name, value in row.items() if name != "prompt_id"} for row in small.dataset()] * times
    return IterableDataset.from_generator(lambda: iter([dict(row) for row in rows]))


KINDS: dict[str, Callable[[], Any]] = {
    "dict": lambda: Dataset.from_dict({"prompt": [f"{x}=" for x in "abcdefghabcd"], "answer": ANSWERS}),
    "list": lambda: Dataset.from_list([dict(row) for row in small.dataset()]),
    "one prompt": same_prompt,
    "one row": lambda: Dataset.from_dict({"prompt": ["ab="] * 12, "answer": ["abcd"] * 12}),
    "one prompt, seeds": lambda: same_prompt(seed=list(range(12))),
    "added keys": with_more_keys,
    "nested columns": lambda: same_prompt(tests=[{"inputs": [i], "limit": None if i else 2.5} for i in range(12)]),
    "shuffled, selected": lambda: small.dataset(24).shuffle(seed=1).select(range(3, 15)),
    "concatenated": lambda: concatenate_datasets([small.dataset(6), small.dataset(6)]),
    "transform": lambda: small.dataset().with_transform(dict),
    "transform that draws": drawn_at_random,
    "transform with locks": with_locks,
    "numpy": lambda: same_prompt(seed=list(range(12))).with_format("numpy"),
    "torch, some columns": lambda: same_prompt(seed=list(range(12))).with_format("torch", columns=["prompt", "answer"]),
    "stream": stream,
    "stream, long": lambda: stream(3),
    "stream of shards": lambda: small.dataset(24).to_iterable_dataset(num_shards=3),
}


def run(tmp_path: Path, data: Any, trainer: Callable[..., Any], **changes: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A trained run, and everything that its reward function was given, call by call."""
    calls: list[dict[str, Any]] = []

    def seen(prompts: list[Any], completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
        shown = {name: [str(each) for each in values] for name, values in columns.items() if isinstance(values, list)}
        shown.pop("lock", None)  # each row has its own
        calls.append({"prompts": prompts, "completions": completions, "answer": answer, **shown})
        return small.reward(completions, answer)

    return trainer(tmp_path, [seen], data, **changes), calls


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_trains_what_stock_trains(tmp_path: Path, kind: str) -> None:
    """Over two epochs where there are two: 12 rows are three batches."""
    changes = {"max_steps": 5 if "stream" not in kind else 3}
    stock, expected = run(tmp_path / "stock", KINDS[kind](), small.stock, **changes)
    ours, found = run(tmp_path / "ours", KINDS[kind](), small.knapsack, rule="uniform", **changes)
    assert found == expected
    assert len(expected) == changes["max_steps"]
    assert small.weights(ours) == small.weights(stock)


@pytest.mark.parametrize("kind", ["one prompt", "one row", "numpy"])
def test_a_training_step_sees_the_rows_that_stock_shows_it(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainers built on TRL override `training_step`: its rows have no key of ours."""
    seen: list[Any] = []
    step = small.GRPOTrainer.training_step
    monkeypatch.setattr(
        small.GRPOTrainer,
        "training_step",
        lambda self, model, rows, *more: seen.append(rows) or step(self, model, rows, *more),
    )
    run(tmp_path / "stock", KINDS[kind](), small.stock, max_steps=3)
    expected, seen[:] = [[str(row) for row in rows] for rows in seen], []
    run(tmp_path / "ours", KINDS[kind](), small.knapsack, rule="uniform", max_steps=3)
    assert [[str(row) for row in rows] for rows in seen] == expected
    assert len(expected) == 3
    assert all(row.number is not None for rows in seen for row in rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_may_be_read_by_other_processes(tmp_path: Path, workers: int) -> None:
    changes = {"max_steps": 2, "dataloader_num_workers": workers}
    _, expected = run(tmp_path / "stock", small.dataset(), small.stock, **changes)
    _, found = run(tmp_path / "ours", small.dataset(), small.knapsack, rule="uniform", **changes)
    assert found == expected


@pytest.mark.parametrize("kind", ["one prompt", "one row", "shuffled, selected", "transform that draws", "numpy"])
def test_the_default_offers_every_row(tmp_path: Path, kind: str) -> None:
    """Every row is a candidate as often as the pool is large, in each epoch, whatever the rows hold."""
    _, calls = run(tmp_path, KINDS[kind](), small.knapsack, max_steps=3, **DEFAULTS)
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert [len(step.plan.prompt_ids) for step in steps] == [12, 12, 12]  # a pool of 3 for each of 4
    assert all(sorted(step.plan.prompt_ids) == sorted(steps[0].plan.prompt_ids) for step in steps)
    assert [len(call["prompts"]) for call in calls] == [16, 16, 16]


def test_no_row_is_left_out_for_ever(tmp_path: Path) -> None:
    rows = [{"prompt": small.LETTERS[i // 2] + "=", "answer": f"{small.LETTERS[i]}{i}"} for i in range(8)]
    changes = DEFAULTS | {"max_steps": 24, "per_device_train_batch_size": 8, "shuffle_dataset": False}
    _, calls = run(tmp_path, Dataset.from_list(rows), small.knapsack, **changes)
    assert {answer for call in calls for answer in call["answer"]} == {row["answer"] for row in rows}


def test_equal_rows_are_groups_of_their_own_that_share_a_belief(tmp_path: Path) -> None:
    data = Dataset.from_list([{"prompt": "ab=", "answer": "ab"}] * 160)
    for pool in (None, 1):
        changes = DEFAULTS | {"pool": pool, "max_steps": 1, "per_device_train_batch_size": 160}
        trainer, calls = run(tmp_path / str(pool), data, small.knapsack, **changes)
        (step,) = read_trace(tmp_path / str(pool) / "trace.jsonl").steps
        assert len(step.plan.prompt_ids) == 40 * trainer.args.pool
        assert len(set(step.plan.prompt_ids)) == len(trainer.allocator.beliefs.table) == 1
        assert len(calls[0]["prompts"]) == 160


def test_a_row_that_two_passes_offer_is_one_candidate_and_equal_rows_are_two(tmp_path: Path) -> None:
    """10 rows, two of them equal, and 8 candidates a step: the second batch lies on two passes over the data."""
    data = Dataset.from_dict({"prompt": [f"{x}=" for x in "abcdefghaa"], "answer": ["abcd"] * 10})
    changes = DEFAULTS | {"pool": 2, "max_steps": 4, "shuffle_dataset": False}
    run(tmp_path, data, small.knapsack, **changes)
    plans = [step.plan.prompt_ids for step in read_trace(tmp_path / "trace.jsonl").steps]
    letters = dict(zip(map(content_id_of_row, data), data["prompt"], strict=True))
    offered = ["".join(letters[prompt_id][0] for prompt_id in plan) for plan in plans]
    assert offered[:2] == ["abcdefgh", "aaabcdef"]  # rows 8 and 9, and row 0 of the next pass


def content_id_of_row(row: dict[str, Any]) -> str:
    return content_id(row)


@pytest.mark.parametrize("added", [{}, {"name": "bob"}])
def test_ids_do_not_depend_on_other_rows(tmp_path: Path, added: dict[str, str]) -> None:
    """A row is added whose message has one key more, which Arrow then gives every message."""
    rows = [{"prompt": [{"role": "user", "content": x}], "answer": ANSWERS[i]} for i, x in enumerate(small.LETTERS)]
    saving = DEFAULTS | {"save_strategy": "steps", "save_steps": 4, "pool": 1}
    small.knapsack(tmp_path, data=Dataset.from_list(rows), max_steps=4, **saving)
    more = [*rows, {"prompt": [{"role": "user", "content": "hh", **added}], "answer": "a"}]
    data = Dataset.from_list([row | {"weight": 1} for row in more]).remove_columns("weight")
    trainer = small.knapsack(tmp_path, data=data, resume=str(tmp_path / "checkpoint-4"), max_steps=6, **saving)
    seen = trainer.allocator.beliefs.forecast([content_id(row) for row in Dataset.from_list(rows)], 4).seen_P
    assert seen.all()
    unseen = sum(share for (share,) in small.logged(trainer, "knapsack/frac_unseen") if share)
    assert unseen <= 1 / 4  # the added row


def test_ids_do_not_depend_on_the_type_of_a_column() -> None:
    made = {"prompt": ["a", "b"], "seed": [1, 2], "options": [[1, 2], [3]]}
    tight = Features({"prompt": Value("string"), "seed": Value("int8"), "options": List(Value("int32"))})
    wide = Features({"prompt": Value("large_string"), "seed": Value("float64"), "options": List(Value("float32"))})
    found = []
    for features in (tight, wide):
        data = Dataset.from_dict(made, features=features)
        for rows in (data, data.with_format("numpy"), data.with_format("torch"), data.to_iterable_dataset()):
            ids = RowIds(rows)
            loaded = NumberedRows(rows) if hasattr(rows, "__len__") else rows
            found.append([ids(numbered(row), 2) for row in itertools.islice(loaded, 2)])
    assert len(set(map(tuple, found))) == 1
    assert len(set(found[0])) == 2


def test_a_checkpoint_of_the_first_rule_goes_on_with_its_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ids were hashes of the prompt alone. No prompt is unseen after the resume, and rows stay candidates."""
    from knapsack_rl.files import read_state, write_state

    data = Dataset.from_dict({"prompt": [f"{x}=" for x in "aabbccdd"], "answer": ANSWERS[:8]})
    saving = DEFAULTS | {"save_strategy": "steps", "save_steps": 2, "pool": 1}
    monkeypatch.setattr("knapsack_rl.trl.rows.row_id", lambda row, **_: content_id(row["prompt"], version=1))
    small.knapsack(tmp_path, data=data, max_steps=2, **saving)
    monkeypatch.undo()
    file = tmp_path / "checkpoint-2" / STATE_FILE
    state = read_state(file)
    assert state.pop("id_version") == 2
    write_state(file, state)
    trainer = small.knapsack(tmp_path, data=data, resume=str(tmp_path / "checkpoint-2"), max_steps=4, **saving)
    assert trainer.session.id_version == 1
    assert small.logged(trainer, "knapsack/frac_unseen") == [(0.0,), (0.0,)]
    plans = [step.plan.prompt_ids for step in read_trace(tmp_path / "trace.jsonl").steps]
    assert {content_id(f"{x}=", version=1) for x in "abcd"} == {each for plan in plans for each in plan}
    trainer.session.save_to(tmp_path)
    assert read_state(tmp_path / STATE_FILE)["id_version"] == 1


def test_images_are_part_of_the_task() -> None:
    image = pytest.importorskip("PIL.Image")
    rows = {"prompt": ["x"] * 3, "image": [image.new("RGB", (2, 2), colour) for colour in ("red", "blue", "red")]}
    data = Dataset.from_dict(rows, features=Features({"prompt": Value("string"), "image": Image()}))
    ids = [RowIds(data)(numbered(row), 2) for row in NumberedRows(data)]
    assert ids[0] == ids[2] != ids[1]


def test_prompt_id_is_the_key_of_the_belief(tmp_path: Path) -> None:
    data = same_prompt(prompt_id=[i // 2 for i in range(12)])
    trainer, _ = run(tmp_path, data, small.knapsack, max_steps=3, **DEFAULTS)
    assert len(trainer.allocator.beliefs.table) == 6
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert sorted(steps[0].plan.prompt_ids) == sorted(str(i // 2) for i in range(12))


def test_columns_that_are_removed_still_tell_rows_apart(tmp_path: Path) -> None:
    """With remove_unused_columns, reward functions see prompts and images alone; so does stock TRL."""

    def first_letter(completions: list[str], **columns: Any) -> list[float]:
        assert ROW_NUMBER not in columns and "answer" not in columns
        return [float(text[:1] in "abcd") for text in completions]

    changes = DEFAULTS | {"remove_unused_columns": True, "max_steps": 2}
    small.knapsack(tmp_path, [first_letter], same_prompt(seed=list(range(12))), **changes)
    plan = read_trace(tmp_path / "trace.jsonl").steps[0].plan
    assert len(set(plan.prompt_ids)) == 12


def test_what_no_id_can_be_made_of_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"{x}=", "answer": "abc"} for x in "abcdefgh"]

    def with_checks() -> Any:
        for row in rows:
            yield {**row}

    data = IterableDataset.from_generator(with_checks).map(lambda row: row)
    ids = RowIds(data)
    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        found = [ids(row | {"check": threading.Lock()}, 2) for row in rows]
    assert found == [content_id(row) for row in rows]
    assert caplog.text.count("no id can be made of the values in check") == 1


def test_a_row_is_copied_as_far_as_it_can_be() -> None:
    row = {"prompt": [{"role": "user"}], "lock": threading.Lock(), "seen": [], "array": np.zeros(2)}
    made = fresh(row)
    made["prompt"][0]["role"], made["seen"] = "system", [1]
    made["array"][0] = 1
    assert (row["prompt"][0]["role"], row["seen"], row["array"].tolist()) == ("user", [], [0.0, 0.0])
    assert made["lock"] is row["lock"]


def test_rows_that_cannot_be_copied_are_trained_on(tmp_path: Path) -> None:
    _, calls = run(tmp_path, with_locks(), small.knapsack, max_steps=2, **DEFAULTS)
    assert [len(call["prompts"]) for call in calls] == [16, 16]


def test_data_without_prompts_are_refused_with_the_columns_that_there_are(tmp_path: Path) -> None:
    data = Dataset.from_dict({"question": ["a="] * 4, "answer": ["a"] * 4})
    with pytest.raises(ValueError, match="has no column 'prompt'; it has answer, question"):
        small.knapsack(tmp_path, data=data, train=False)
    with pytest.raises(ValueError, match="has no column 'prompt'; it has answer"):  # there is one, and it is not shown
        small.knapsack(tmp_path, data=small.dataset().with_format(None, columns=["answer"]), train=False)
    for hidden in (data.to_iterable_dataset(), data.with_transform(lambda batch: batch)):  # known when they are read
        with pytest.raises(ValueError, match="has no column 'prompt'; it has answer, question"):
            small.knapsack(tmp_path, data=hidden)


def test_ids_are_checked_whatever_the_order_and_the_type_of_prompts(tmp_path: Path) -> None:
    """One prompt for each id: text and chats, in stored order, shuffled, and without the rows that differ."""
    ids = [f"p{i // 2}" for i in range(12)]
    texts = [f"{small.LETTERS[i // 2]}=" for i in range(12)]
    chats = [
        [{"role": "system", "content": "x"}] * (i // 2 % 3) + [{"role": "user", "content": texts[i]}] for i in range(12)
    ]
    for prompts in (texts, chats):
        data = Dataset.from_dict({"prompt": prompts, "answer": ANSWERS, "prompt_id": ids})
        small.knapsack(tmp_path, data=data, train=False)
        broken = Dataset.from_dict(
            {"prompt": [*prompts[:7], prompts[0], *prompts[8:]], "answer": ANSWERS, "prompt_id": ids}
        )
        for order in (range(12), [11, 3, 6, 2, 0, 7, 9]):
            with pytest.raises(ValueError, match="prompt_id 'p3' stands for two different prompts"):
                small.knapsack(tmp_path, data=broken.select(order), train=False)
        small.knapsack(tmp_path, data=broken.select([i for i in range(12) if i != 7]), train=False)
