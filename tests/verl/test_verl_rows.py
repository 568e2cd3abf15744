"""Which task a row is: by its content, whatever its types, and by its index where there is one."""

from __future__ import annotations

import decimal
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from verl.utils import tensordict_utils
from verl.utils.dataset.rl_dataset import collate_fn
from world.in_memory import GOLDEN

from knapsack_rl.verl.buffers import column
from knapsack_rl.verl.rows import ADDED, first_offers, has_own_indices, task_ids

CHAT = [{"role": "user", "content": "1 + 1"}]
ROW = {
    "raw_prompt": CHAT, "prompt": CHAT, "data_source": "math", "ability": "add", "index": 7,
    "reward_model": {"style": "rule", "ground_truth": "2"}, "extra_info": {"index": 7, "split": "train"},
    "tools_kwargs": {}, "interaction_kwargs": {},
}  # fmt: skip


def ids(*rows: dict[str, Any], by: str = "index", version: int = 2) -> list[str]:
    return task_ids(by, version, {name: [row[name] for row in rows] for name in rows[0]})


@pytest.mark.parametrize(
    "change",
    [
        {"reward_model": {"style": "rule", "ground_truth": "3"}},
        {"extra_info": {"index": 7, "split": "train", "seed": 4}},
        {"raw_prompt": [{"role": "user", "content": "1 + 2"}]},
        {"raw_prompt": [{"role": "user", "content": [{"type": "image", "image": SimpleNamespace(
            mode="L", size=(1, 1), tobytes=lambda: b"x")}]}]},
        {"data_source": "code"},
        {"tools_kwargs": {"calculator": {"create_kwargs": {"answer": 2}}}},
        {"agent_name": "tool_agent"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
@pytest.mark.parametrize("by", ["index", "content"])
def test_rows_that_differ_in_anything_are_two_tasks(change: dict[str, Any], by: str) -> None:
    plain = {"agent_name": None} | ROW
    assert len(set(ids(plain, plain | change, by=by))) == 2


def test_an_index_tells_rows_apart_and_is_left_out_of_the_content() -> None:
    other = ROW | {"index": 8, "extra_info": {"index": 8, "split": "train"}}
    assert len(set(ids(ROW, other))) == 2
    assert len(set(ids(ROW, other, by="content"))) == 1


@pytest.mark.parametrize("index", [7.0, np.int64(7), np.float32(7), decimal.Decimal(7), torch.tensor(7)])
def test_an_index_of_1_is_that_of_1_0(index: Any) -> None:
    assert ids(ROW) == ids(ROW | {"index": index, "extra_info": {"index": index, "split": "train"}})


def test_what_is_added_to_a_row_does_not_change_its_id() -> None:
    """Columns of verl's own; keys that Arrow adds; tuples and arrays for lists."""
    assert ids(ROW) == ids(ROW | {name: object() for name in ADDED} | {"prompt": None})
    grown = {"style": "rule", "ground_truth": "2", "later": None, "empty": {}}
    assert ids(ROW) == ids(ROW | {"reward_model": grown, "other": None, "raw_prompt": tuple(CHAT)})


def test_a_prompt_id_comes_first() -> None:
    named = [ROW | {"prompt_id": 3}, ROW | {"prompt_id": 3.0, "ability": "x"}, ROW | {"prompt_id": "x"}]
    assert ids(*named) == ["3", "3", "x"]


def test_columns_without_an_id_are_left_out_and_named() -> None:
    left_out: set[str] = set()
    columns = {name: [value, value] for name, value in ROW.items()} | {"judge": [object(), object()]}
    found = task_ids("index", 2, columns, left_out=left_out)
    assert found == [*ids(ROW)] * 2
    assert left_out == {"judge"}
    with pytest.raises(TypeError, match="column 'judge': .*give every row a prompt_id"):
        task_ids("index", 2, columns)


def test_ids_of_verls_own_batches() -> None:
    """Through verl's collate function and tensordicts, of rows with and without an index; the same when cut up."""
    rows = [ROW | {"dummy_tensor": torch.tensor([0], dtype=torch.uint8), "uid": str(i)} for i in range(3)]
    rows[1] |= {"extra_info": {}, "index": 0}
    rows[2] |= {"extra_info": {}, "index": 0, "reward_model": {"style": "rule", "ground_truth": "9"}}
    batch = tensordict_utils.get_tensordict(collate_fn([dict(row) for row in rows]))

    def of(part: Any) -> list[str]:
        return task_ids("index", 2, {name: column(part, name) for name, _ in part.items()})

    assert of(batch) == ids(*rows)
    assert len(set(of(batch))) == 3
    assert [of(tensordict_utils.index_select_tensor_dict(batch, [i]))[0] for i in range(3)] == of(batch)


def test_the_first_rule_of_ids_stays_for_old_checkpoints() -> None:
    chat, other = GOLDEN["prompts"][:2]
    rows = [{"index": i, "data_source": source, "raw_prompt": prompt} for i, source, prompt in (
        (0, "math", chat), (0, "math", other), (7, "math", chat), (7.0, "code", chat))]  # fmt: skip
    by_index = ids(*rows, version=1)
    assert len(set(by_index)) == 4
    assert by_index[2].startswith("math/7/")
    assert by_index[3].startswith("code/7.0/")
    by_content = ids(*rows, by="content", version=1)
    assert by_content[0] == by_content[2] == by_content[3] != by_content[1]
    picture = [{"role": "user", "content": [object()]}]
    assert ids(rows[2] | {"raw_prompt": picture}, version=1) == ["math/7/-"]
    for by, row in (("content", rows[2]), ("index", rows[0])):
        with pytest.raises(ValueError, match="a prompt of 'math' cannot be hashed"):
            ids(row | {"raw_prompt": picture}, by=by, version=1)


def dataset(indices: list[Any], sources: list[str] | None = None) -> Any:
    columns = {"data_source": sources or ["a"] * len(indices), "extra_info": [{"index": i, "x": 1} for i in indices]}
    return SimpleNamespace(dataframe=datasets.Dataset(pa.table(columns)))


def test_rows_have_their_own_indices_if_no_two_share_one() -> None:
    assert has_own_indices(dataset([1, 2, 3]))
    assert has_own_indices(dataset(["x", "y"]))
    assert has_own_indices(dataset([1, 1], ["a", "b"]))
    assert not has_own_indices(dataset([1, 1]))
    assert not has_own_indices(dataset([1, None]))
    assert not has_own_indices(dataset([[1], [2]]))
    for frame in (None, pa.table({"data_source": ["a"]}), pa.table({"data_source": ["a"], "extra_info": ["x"]})):
        assert not has_own_indices(SimpleNamespace(dataframe=frame and datasets.Dataset(frame)))
    assert first_offers(["a", "a", "b", "a", "a"], [1, 2, 1, 1.0, 3]) == [0, 1, 2, 4]
