"""Reward functions of every kind that TRL runs, and one clear error for each that is wrong."""

from __future__ import annotations

import decimal
import fractions
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch

from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackGRPOTrainer
from knapsack_rl.trl.rewards import PASSED_BY_TRL, checked_rewards


def judged(completions: list[str], answer: list[str], judge: float, **_: Any) -> list[float]:
    return [judge * each for each in small.reward(completions, answer)]


def with_judge(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that supplies a parameter."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, judge=1.0, **kwargs)

    return wrapper


class Graded:
    def __call__(self, completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return small.reward(completions, answer)


class Awaited:
    async def __call__(self, completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return small.reward(completions, answer)


def of_other_types(completions: list[str], answer: list[str], **_: Any) -> list[Any]:
    kinds: list[Callable[[float], Any]] = [
        float, bool, np.float32, torch.tensor, np.array, int, lambda _: None, decimal.Decimal, fractions.Fraction,
    ]  # fmt: skip
    return [kinds[i % len(kinds)](each) for i, each in enumerate(small.reward(completions, answer))]


RIGHT: dict[str, Any] = {
    "decorated": with_judge(judged),
    "partial": functools.partial(judged, judge=1.0),
    "class": Graded(),
    "asynchronous class": Awaited(),
    "array": lambda completions, answer, **_: np.array(small.reward(completions, answer)),
    "tensor": lambda completions, answer, **_: torch.tensor(small.reward(completions, answer)),
    "generator": lambda completions, answer, **_: (each for each in small.reward(completions, answer)),
    "other types": of_other_types,
}


@pytest.mark.parametrize("kind", RIGHT)
def test_what_stock_trl_takes(tmp_path: Path, kind: str) -> None:
    stock = small.stock(tmp_path / "stock", RIGHT[kind], max_steps=1)
    ours = small.knapsack(tmp_path / "ours", RIGHT[kind], max_steps=1, rule="uniform")
    assert small.weights(ours) == small.weights(stock)
    assert ours.reward_func_names == stock.reward_func_names
    assert ours.reward_funcs[0] is RIGHT[kind]


def test_fields_of_a_rollout_function(tmp_path: Path) -> None:
    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        tokens, several = trainer.processing_class(prompts)["input_ids"], len(prompts)
        logprobs, graded = [[-1.0, -1.0]] * several, [float(i % 2) for i in range(several)]
        return {"prompt_ids": tokens, "completion_ids": [[4, 1]] * several, "logprobs": logprobs, "graded": graded}

    def reward(completions: list[str], graded: list[float], **_: Any) -> list[float]:
        return graded

    trainer = small.knapsack(tmp_path, [reward], arguments={"rollout_func": rollout}, max_steps=1)
    assert small.logged(trainer, "reward") == [(0.5,)]


def test_columns_that_a_transform_makes(tmp_path: Path) -> None:
    def solved(completions: list[str], solution: list[str], **_: Any) -> list[float]:
        return small.reward(completions, solution)

    data = small.dataset().with_transform(lambda batch: {"prompt": batch["prompt"], "solution": batch["answer"]})
    assert small.knapsack(tmp_path, [solved], data, max_steps=1).state.global_step == 1
    with pytest.raises(ValueError, match=r"'solved' cannot be called .*missing a required argument: 'solution'"):
        small.knapsack(tmp_path, [solved], small.dataset().with_transform(dict))


async def awaited_strings(completions: list[str], **_: Any) -> list[str]:
    return ["good"] * len(completions)


WRONG: dict[str, tuple[Any, str]] = {
    "strings": (lambda completions, **_: ["good"] * len(completions), r"returned 'good' \(str\) for completion 0"),
    "awaited strings": (awaited_strings, r"'awaited_strings' returned 'good' \(str\) for completion 0"),
    "text": (lambda completions, **_: "x" * len(completions), r"returned 'xxxxxxxxxxxxxxxx' \(str\): it must return"),
    "a scalar": (lambda completions, **_: 1.0, r"returned 1.0 \(float\): it must return a list with one number"),
    "nothing": (lambda completions, **_: None, r"returned None \(NoneType\): it must return"),
    "a mapping": (lambda completions, **_: {"a": 1.0}, r"returned \{'a': 1.0\} \(dict\)"),
    "too few": (lambda completions, **_: [1.0], r"returned 1 rewards: .* each of the 16 completions"),
    "lists": (lambda completions, **_: [[1.0]] * len(completions), r"returned \[1.0\] \(list\) for completion 0"),
    "complex numbers": (lambda completions, **_: [1j] * len(completions), r"returned 1j \(complex\) for completion 0"),
    "too large a number": (lambda completions, **_: [10**400] * len(completions), r"\(int\) for completion 0"),
    "a missing column": (lambda completions, **k: k["solution"], r"raised KeyError\('solution'\); .* columns answer"),
    "no keywords": (lambda completions, answer: [0.0] * len(completions), "got an unexpected keyword argument"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said_with_the_name_of_the_function(tmp_path: Path, kind: str) -> None:
    function, words = WRONG[kind]
    with pytest.raises(ValueError, match=words) as caught:
        small.knapsack(tmp_path, [small.reward, function], max_steps=1)
    assert repr(function.__name__) in str(caught.value)


def test_errors_inside_a_function_stay_and_name_it(tmp_path: Path) -> None:
    def divides(completions: list[str], **_: Any) -> list[float]:
        return [1 / 0]

    with pytest.raises(ZeroDivisionError) as caught:
        small.knapsack(tmp_path, [divides], max_steps=1)
    assert caught.value.__notes__ == ["in the reward function 'divides'"]


@pytest.mark.parametrize("function", [Graded(), functools.partial(judged, judge=1.0)], ids=["class", "partial"])
def test_a_column_that_a_class_or_partial_asks_for(tmp_path: Path, function: Any) -> None:
    data = small.dataset().remove_columns("answer")
    with pytest.raises(ValueError, match="asks for the column 'answer'; the dataset has prompt, prompt_id"):
        small.knapsack(tmp_path, [function], data, train=False)


def test_removed_columns_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'reward' asks for the column 'answer'; the dataset has prompt: "):
        small.knapsack(tmp_path, train=False, remove_unused_columns=True)


def test_arguments_of_trl_are_known(tmp_path: Path) -> None:
    """Otherwise a function that asks for one by name would be refused."""
    given: set[str] = set()

    def seen(completions: list[str], **columns: Any) -> list[float]:
        given.update(columns)
        return [0.0] * len(completions)

    trainer = small.stock(tmp_path, [seen], max_steps=1)
    assert given - set(small.dataset().column_names) <= PASSED_BY_TRL
    with checked_rewards(trainer):
        assert trainer.reward_funcs != [seen]
    assert trainer.reward_funcs == [seen]


def test_a_subclass_may_compute_rewards_itself(tmp_path: Path) -> None:
    class Counting(KnapsackGRPOTrainer):
        def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
            rewards = [[float(len(ids))] for ids in completion_ids_list]
            return self.accelerator.gather(torch.tensor(rewards))

    trainer = small.knapsack(tmp_path, trainer_class=Counting, success_threshold=3.0)
    assert trainer.generation_step == 3
    lengths = small.logged(trainer, "completions/mean_length")
    assert [reward for (reward,) in small.logged(trainer, "reward")] == pytest.approx([mean for (mean,) in lengths])
    assert "_calculate_rewards" not in vars(trainer)


def test_without_args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock TRL takes defaults and names the folder by the model; on a CPU its default of bf16 has to go."""

    class OnCPU(KnapsackGRPOConfig):
        def __init__(self, output_dir: str) -> None:
            super().__init__(output_dir, use_cpu=True, bf16=False)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("knapsack_rl.trl.trainer.KnapsackGRPOConfig", OnCPU)
    model = small.model()
    model.config._name_or_path = "somewhere/tiny"
    data = small.dataset(16)
    trainer = KnapsackGRPOTrainer(model, small.reward, train_dataset=data, processing_class=small.tokenizer())
    assert (type(trainer.args), Path(trainer.args.output_dir).name) == (OnCPU, "tiny-GRPO")
    assert trainer.args.rule == "calibrated"


def test_groups_of_256(tmp_path: Path) -> None:
    changes = {"num_generations": 256, "per_device_train_batch_size": 512, "max_steps": 1, "max_completion_length": 1}
    trainer = small.knapsack(tmp_path, small.reward, **changes)
    assert trainer.args.max_generations == 1024
    assert KnapsackGRPOConfig(**small.settings(tmp_path)).max_generations == 128
