"""Data sets of prompts from every kind of source, and each way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

import datasets

from knapsack_rl.tasks import TaskError
from knapsack_rl.tasks.prompts import as_chat, load_prompts

ROWS = [{"question": f"{i} + 1 =", "solution": str(i + 1), "level": i % 2} for i in range(4)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def write(folder: Path, rows: list[dict[str, Any]], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_embedded_prompts_come_with_held_out_ones_and_their_scorer() -> None:
    prompts = load_prompts("embedded?train=32&heldout=16", seed=3)
    assert set(prompts.train.column_names) == {"prompt", "answer", "prompt_id", "family"}
    assert (len(prompts.train), len(prompts.heldout or ())) == (32, 16)
    assert prompts.reward is not None
    assert prompts.reward(prompts=["?"], completions=["1"], answer=["1"]) == [1.0]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_local_files_of_every_format(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"data.{kind}"
    table = datasets.Dataset.from_list(ROWS)
    {
        "jsonl": lambda: table.to_json(path),
        "json": lambda: path.write_text(json.dumps(ROWS)),
        "csv": lambda: table.to_csv(path),
        "parquet": lambda: table.to_parquet(path),
    }[kind]()
    loaded = load_prompts(str(path), prompt_column="question", answer_column="solution").train
    assert loaded["prompt"][1] == "1 + 1 ="
    assert str(loaded["answer"][1]) == "2"
    assert "prompt_id" not in loaded.column_names  # a row without one is known by its content
    assert list(loaded["level"]) == [0, 1, 0, 1]  # further columns reach the reward


def test_conversations_stay_and_given_ids_are_kept(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "1 + 1 ="}]
    rows = [{"prompt": chat, "prompt_id": 7, "completions": "would clash with TRL"}]
    loaded = load_prompts(write(tmp_path, rows)).train
    assert loaded["prompt"][0] == chat
    assert loaded["prompt_id"][0] == "7"
    assert "completions" not in loaded.column_names
    assert as_chat(loaded, "be brief") is loaded


def test_text_becomes_a_conversation(tmp_path: Path) -> None:
    loaded = load_prompts(write(tmp_path, ROWS), prompt_column="question").train
    assert as_chat(loaded)["prompt"][0] == [{"role": "user", "content": "0 + 1 ="}]
    assert as_chat(loaded, "be brief")["prompt"][0][0] == {"role": "system", "content": "be brief"}


def test_a_column_called_prompt_gives_way_to_the_one_asked_for(tmp_path: Path) -> None:
    rows = [{"prompt": "old", "question": "new", "answer": "a", "solution": "b"}]
    loaded = load_prompts(write(tmp_path, rows), prompt_column="question", answer_column="solution").train
    assert (loaded["prompt"][0], loaded["answer"][0]) == ("new", "b")


def test_reasoning_gym_tasks_take_settings_and_bring_their_scorer() -> None:
    pytest.importorskip("reasoning_gym")
    prompts = load_prompts("reasoning-gym:chain_sum?size=6&min_terms=2&max_terms=2", seed=5)
    assert len(prompts.train) == 6
    assert len(set(prompts.train["prompt_id"])) == 6
    row = prompts.train[2]
    assert prompts.reward is not None
    assert prompts.reward(prompts=["?"], completions=[row["answer"]], prompt_id=[row["prompt_id"]]) == [1.0]
    assert (
        load_prompts("reasoning-gym:chain_sum?size=6&min_terms=2&max_terms=2", seed=5).train.to_list()
        == prompts.train.to_list()
    )
    assert load_prompts("reasoning-gym:chain_sum?size=6&seed=6").train[0] != row


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (ROWS, {}, r"no column 'prompt' to take prompts from \(--prompt-column\); it has: question, solution, level"),
        (ROWS, {"prompt_column": "question", "answer_column": "nope"}, "no column 'nope' to take answers from"),
        ([{"prompt": "a"}, {"prompt": ""}], {}, "row 1 of .* has no prompt"),
        ([{"prompt": "a"}, {"prompt": None}], {}, "row 1 of .* has no prompt"),
        (
            [{"prompt": "a", "prompt_id": "x"}, {"prompt": "b", "prompt_id": "x"}],
            {},
            r"two prompts with the prompt_id 'x' \(the second is row 1\)",
        ),
        ([{"prompt": "a", "prompt_id": "x"}, {"prompt": "b"}], {}, "row 1 of .* has no prompt_id"),
        ([{"prompt": "a", "prompt_id": ""}], {}, "row 0 of .* has no prompt_id"),
        (
            [{"prompt": "a", "prompt_id": 1}, {"prompt": "b", "prompt_id": 1.0}],
            {},
            "two prompts with the prompt_id '1'",
        ),
        ([{"prompt": 0}], {}, "the prompt in row 0 of .* is 0: prompts are texts, or lists of messages"),
        ([{"prompt": ["a"]}], {}, r"the prompt in row 0 of .* is \['a'\]: prompts are texts"),
        ([{"prompt": [{"role": "user"}]}], {}, "the prompt in row 0 of .*: prompts are texts"),
    ],
)
def test_unusable_rows_are_refused(
    rows: list[dict[str, Any]], columns: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=message):
        load_prompts(write(tmp_path, rows), **columns)


def test_one_prompt_twice_is_no_error(tmp_path: Path) -> None:
    assert len(load_prompts(write(tmp_path, [{"prompt": "a"}] * 2)).train) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", "there is no data file nowhere.jsonl"),
        ("embedded?train=many", "the embedded tasks refuse their settings"),
        ("embedded?rows=3", "the embedded tasks refuse their settings"),
        ("embedded?train=-1", "the embedded tasks refuse their settings .*: -1 training and 256 held-out rows"),
        ("reasoning-gym:chain_sun", "has no task 'chain_sun'; it has, among 10[0-9]+: chain_sum"),
        ("reasoning-gym:chain_sum?nonsense=1", "refuses the settings of 'chain_sum'"),
        ("reasoning-gym:chain_sum?min_terms=-1", "refuses the settings of 'chain_sum'"),
    ],
)
def test_sources_that_do_not_exist_are_refused_in_one_line(source: str, message: str) -> None:
    with pytest.raises(TaskError, match=message) as refusal:
        load_prompts(source)
    assert "\n" not in str(refusal.value)


def test_damaged_and_empty_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (tmp_path / "data.xlsx").write_text("?")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9t\xe9"}\n')
    (tmp_path / "latin.csv").write_bytes(b"prompt\n\xe9t\xe9\n")
    for name, message in (
        ("empty.jsonl", "the file is empty"),
        ("broken.jsonl", "cannot load the data set .*: JSON parse error"),
        ("latin.jsonl", "cannot load the data set .*: not UTF-8 text"),
        ("latin.csv", "cannot load the data set .*: not UTF-8 text"),
        ("data.xlsx", "cannot tell the format"),
    ):
        with pytest.raises(TaskError, match=message) as refusal:
            load_prompts(str(tmp_path / name))
        assert "\n" not in str(refusal.value)
    header = tmp_path / "header.csv"
    header.write_text("prompt,answer\n")
    with pytest.raises(TaskError, match="empty"):
        load_prompts(str(header))


def test_the_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match="cannot load the data set 'nobody/nothing'") as refusal:
        load_prompts("nobody/nothing")
    assert "\n" not in str(refusal.value)
