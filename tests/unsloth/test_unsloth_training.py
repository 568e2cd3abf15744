"""Training with the generated trainer: equal to Unsloth under constant plans, uneven otherwise, resumed exactly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import patched  # before our own modules
import pytest
import small
from peft import LoraConfig, get_peft_model

# The plans that all adapters must make; here on the generated trainer.
from test_trl_same_plans import test_same_plans_and_beliefs_as_every_other_adapter  # noqa: F401

from knapsack_rl.trace import read_trace
from trl import GRPOTrainer

COMPARED = ("loss", "reward", "reward_std", "frac_reward_zero_std", "grad_norm", "completions/mean_length")
# The first of them waits for Unsloth's import as well.
pytestmark = pytest.mark.timeout(900)
SHORT = {"max_steps": 4}


def lora() -> dict[str, Any]:
    """A model with adapters, as `FastLanguageModel.get_peft_model` makes one."""
    adapters = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return {"model": patched.of_unsloth(get_peft_model(small.model(), adapters))}


def plans(folder: Path) -> list[list[int]]:
    return [step.plan.counts_P.tolist() for step in read_trace(folder / "trace.jsonl").steps]


def test_the_trainer_is_the_one_that_unsloth_generates() -> None:
    assert GRPOTrainer.__name__ == "UnslothGRPOTrainer"


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (None, {}),
        (None, {"per_device_train_batch_size": 8, "steps_per_generation": 2, "gradient_accumulation_steps": 2}),
        (lora, {}),
        (lora, {"per_device_train_batch_size": 8, "steps_per_generation": 2, "num_iterations": 2, "beta": 0.1}),
    ],
    ids=["full", "full, two micro-batches", "LoRA", "LoRA, two iterations"],
)
def test_a_constant_plan_gives_the_weights_of_unsloth(tmp_path: Path, arguments: Any, changes: Any) -> None:
    changes = SHORT | changes
    plain = small.stock(tmp_path / "plain", arguments=arguments and arguments(), **changes)
    ours = small.knapsack(tmp_path / "ours", arguments=arguments and arguments(), rule="uniform", **changes)
    assert small.logged(ours, *COMPARED) == small.logged(plain, *COMPARED)
    assert any(grad for (grad,) in small.logged(plain, "grad_norm")), "nothing was learned, so nothing was compared"
    assert small.weights(ours) == small.weights(plain)


@pytest.mark.parametrize("arguments", [None, lora], ids=["full", "LoRA"])
def test_an_uneven_run_that_is_resumed_is_the_run_that_never_stopped(tmp_path: Path, arguments: Any) -> None:
    changes: dict[str, Any] = SHORT | {
        "rule": "calibrated", "pool": 2, "group_weighting": "prompt",
        "save_strategy": "steps", "save_steps": 2, "max_steps": 6,
    }  # fmt: skip
    whole = small.knapsack(tmp_path / "whole", arguments=arguments and arguments(), **changes)
    counts = plans(tmp_path / "whole")
    assert all(sum(each) == 16 for each in counts)
    assert any(len(set(each) - {0}) > 1 for each in counts), "every group had the same size"
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    again = small.knapsack(tmp_path / "again", arguments=arguments and arguments(), resume=checkpoint, **changes)
    assert plans(tmp_path / "again") == counts[2:]
    assert small.weights(again) == small.weights(whole)


@pytest.mark.parametrize(
    ("name", "value"), [("UNSLOTH_GRPO_ZERO_VARIANCE_EXCLUDE", "1"), ("UNSLOTH_GRPO_LOSS_AGGREGATION", "prompt")]
)
def test_options_that_reshape_groups_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}={value} weighs rollouts as if .*: unset it"):
        small.knapsack(tmp_path, train=False)


WRONG_ORDER = """
from knapsack_rl.trl import KnapsackGRPOTrainer
import patched, small, sys
from pathlib import Path
small.knapsack(Path(sys.argv[1]), train=False)
"""


def test_the_wrong_order_of_imports_is_refused(tmp_path: Path) -> None:
    folders = [str(Path(__file__).parent), str(Path(small.__file__).parent)]
    code = f"import sys; sys.path[:0] = {folders}\n{WRONG_ORDER}"
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: the model is Unsloth's and the trainer is TRL's own"), ended.stderr
    assert last.endswith("put `import unsloth` above it")
