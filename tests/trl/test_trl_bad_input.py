"""What is refused, with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small
from datasets import Dataset, IterableDataset

from allocators import allocator_of
from knapsack_rl.beliefs.ids import row_id
from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackGRPOTrainer
from knapsack_rl.trl.rows import Candidate, NumberedRow, candidates
from trl import GRPOConfig


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_generations": 1}, "min_generations is 1: a group of one has no gradient"),
        ({"min_generations": -2}, "min_generations is -2"),
        ({"max_generations": 1}, "max_generations is 1"),
        ({"min_generations": 5}, r"num_generations is 4: the average .* min_generations \(5\)"),
        ({"max_generations": 3}, r"num_generations is 4: the average .* max_generations \(3\)"),
        ({"rule": "greedy"}, "there is no rule 'greedy': choose from calibrated, beta, paper, uniform"),
        ({"group_weighting": "token"}, "group_weighting is 'token'"),
        ({"half_life": 0.0}, "half_life is 0.0"),
        ({"features": "embedding"}, "features is 'embedding'"),
        ({"pool": 0}, "pool is 0"),
        ({"pool": 5}, "pool is 5 and num_generations 4"),
        ({"pool": 2, "min_generations": 2}, "min_generations is 2 with pool=2"),
        ({"pool": 2, "rule": "uniform"}, "'uniform' does not choose among a pool"),
        ({"num_generations": "4"}, "num_generations is '4': it must be a whole number"),
        ({"min_group": 5, "pool": 1}, r"min_group is 5 and num_generations is 4: with pool=1 every prompt has a group"),
        ({"per_device_train_batch_size": 4, "min_group": 5}, "generation_batch_size is 4 and min_group 5: a batch"),
        ({"per_device_train_batch_size": 0}, "generation_batch_size is 0 and num_generations 4: a batch must hold"),
    ],
    ids=str,
)
def test_settings(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KnapsackGRPOConfig(**small.settings(tmp_path, **changes))


def test_config_of_stock_trl(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="args is a GRPOConfig: pass a KnapsackGRPOConfig"):
        KnapsackGRPOTrainer(
            model=small.model(), reward_funcs=small.reward, args=GRPOConfig(**small.settings(tmp_path)),
            train_dataset=small.dataset(), processing_class=small.tokenizer(),
        )  # fmt: skip


def test_a_prompt_without_a_token_is_trained_on_as_stock_does(tmp_path: Path) -> None:
    """It has no hidden states, and the others keep theirs. (As the first of a batch it fails in TRL itself.)"""
    data = small.dataset(4).map(lambda row, i: {"prompt": "" if i == 1 else row["prompt"]}, with_indices=True)
    small.stock(tmp_path / "stock", data=data, shuffle_dataset=False, max_steps=2)
    ours = small.knapsack(tmp_path / "ours", data=data, rule="calibrated", shuffle_dataset=False, max_steps=2)
    assert len(ours.looks) == 3


def rows(*changes: dict[str, Any]) -> Dataset:
    return Dataset.from_list([{"prompt": f"{small.LETTERS[i % 8]}=", "answer": "a"} | c for i, c in enumerate(changes)])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (small.dataset(0), "has 0 prompts and one generation batch needs 4"),
        (small.dataset(3), "has 3 prompts and one generation batch needs 4"),
        (rows({"prompt_id": "x"}, {"prompt_id": "y"}, {"prompt_id": "x"}, {"prompt_id": "z"}),
         r"prompt_id 'x' stands for two different prompts \(one in row 2\)"),
        (rows({"prompt_id": "x"}, {"prompt_id": None}, {"prompt_id": "y"}, {"prompt_id": "z"}),
         "a row has no prompt_id"),
    ],
    ids=["empty", "short", "duplicate", "missing"],
)  # fmt: skip
def test_datasets(tmp_path: Path, data: Dataset, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small.knapsack(tmp_path, data=data, train=False)


def test_reward_function_asks_for_a_column_that_is_not_there(tmp_path: Path) -> None:
    def graded(completions: list[Any], solution: list[str], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match="'graded' asks for the column 'solution'; the dataset has answer, prompt"):
        small.knapsack(tmp_path, [graded], train=False)


def test_allocator_that_misses_the_budget(tmp_path: Path) -> None:
    class Careless:
        def plan(self, prompt_ids: Any, budget: int, step: int) -> Any:
            return allocator_of("uniform").plan(prompt_ids, budget - 4, step)

        def state_dict(self) -> dict[str, Any]:
            return {}

    with pytest.raises(ValueError, match="planned 12 rollouts where 16 were to be spent"):
        small.knapsack(tmp_path, arguments={"allocator": Careless()})


def named(*ids: str) -> list[dict[str, Any]]:
    """Rows of a stream, which have an id and no number."""
    return [{"prompt_id": prompt_id, "prompt": prompt_id} for prompt_id in ids]


def numbered(*numbers: int) -> list[dict[str, Any]]:
    """Rows of a data set that can be indexed; all are equal."""
    return [NumberedRow({"prompt": "x"}, number) for number in numbers]


def found(rows: list[dict[str, Any]], first_row: int, group_size: int, pool: int = 1) -> list[Candidate]:
    return [candidate for candidate, _ in candidates(rows, first_row, group_size, pool, row_id)]


def test_rows_that_do_not_come_in_groups() -> None:
    with pytest.raises(ValueError, match="rows 1 and 2 of a batch belong to one group of 4 but are rows 'a' and 'b'"):
        found(named("a", "a", "b", "a"), 0, 4)
    with pytest.raises(ValueError, match="rows 1 and 2 of a batch belong to one group of 4 but are rows 7 and 8"):
        found(numbered(7, 7, 8, 7), 0, 4)
    straddling = named("a", "b", "b", "b", "c")
    assert [each.prompt_id for each in found(straddling, 2, 3)] == ["b", "c"]  # 'a' began elsewhere
    assert [each.number for each in found(numbered(4, 5, 5, 5, 6), 2, 3)] == [5, 6]


def test_rows_of_a_pool_that_do_not_come_in_groups() -> None:
    rows = named("a", "a", "b", "c", "c", "d")
    assert [each.prompt_id for each in found(rows, 0, 3, pool=2)] == ["a", "b", "c", "d"]
    assert [each.prompt_id for each in found(rows[1:], 1, 3, pool=2)] == ["b", "c", "d"]
    with pytest.raises(ValueError, match="rows 0 and 1 of a batch belong to one of the 2 candidates in a group of 3"):
        found(named("a", "b", "b"), 0, 3, pool=2)


def test_pools_that_the_data_cannot_fill(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 12 prompts and one generation batch offers 16 \(pool=4 for"):
        small.knapsack(tmp_path, train=False, pool=4)
    stream = IterableDataset.from_generator(lambda: iter(list(small.dataset())))
    with pytest.raises(ValueError, match="pool is 2 and the training dataset is a stream"):
        small.knapsack(tmp_path, data=stream, train=False, pool=2)
