"""`knapsack-rl verl-args`: the overrides that turn a verl command into a knapsack run."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields
from typing import Any

from knapsack_rl.verl.settings import CHOICES, Settings

MODES = ("sync", "colocate_async", "separate_async")

# Of the paper's scripts (Qwen2.5-Math-7B on DAPO-Math-17k). What they share with verl's defaults is left out.
PAPER = {
    "algorithm.adv_estimator": "grpo",
    "algorithm.rollout_correction.rollout_is": "token",
    "algorithm.rollout_correction.rollout_is_threshold": "2.0",
    "data.train_batch_size": "256",
    "data.max_prompt_length": "2048",
    "data.max_response_length": "4096",
    "data.truncation": "left",
    "actor_rollout_ref.model.path": "Qwen/Qwen2.5-Math-7B",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "32",
    "actor_rollout_ref.actor.optim.lr": "1e-6",
    "actor_rollout_ref.actor.optim.lr_warmup_steps": "0",
    "actor_rollout_ref.actor.optim.weight_decay": "0.0",
    "actor_rollout_ref.actor.clip_ratio_low": "0.2",
    "actor_rollout_ref.actor.clip_ratio_high": "0.28",
    "actor_rollout_ref.actor.clip_ratio_c": "10.0",
    "actor_rollout_ref.actor.entropy_coeff": "0",
    "actor_rollout_ref.actor.use_kl_loss": "False",
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.rollout.n": "8",
    "actor_rollout_ref.rollout.temperature": "1.0",
    "actor_rollout_ref.rollout.top_p": "1.0",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": "1",
    "actor_rollout_ref.rollout.gpu_memory_utilization": "0.85",
    "actor_rollout_ref.rollout.calculate_log_probs": "True",
    "actor_rollout_ref.rollout.val_kwargs.n": "16",
    "actor_rollout_ref.rollout.val_kwargs.temperature": "0.6",
    "actor_rollout_ref.rollout.val_kwargs.top_p": "1.0",
    "actor_rollout_ref.rollout.val_kwargs.do_sample": "True",
    "trainer.test_freq": "10",
    "trainer.total_training_steps": "1000",
}


def overrides(mode: str = "sync", **settings: Any) -> list[str]:
    """The overrides of a run.

    Args:
        mode: verl's ``trainer.v1.trainer_mode``.
        **settings: fields of `Settings`; those that keep their default are left out.

    Raises:
        ConfigError: a setting that makes no sense.
    """
    wanted, default = Settings.of({"knapsack": settings}), Settings()
    names = [field.name for field in fields(Settings) if getattr(wanted, field.name) != getattr(default, field.name)]
    buffer = "KnapsackReplayBuffer" if mode == "sync" else "KnapsackReplayBufferAsync"
    return [
        f"trainer.v1.trainer_mode={mode}",
        "+hydra.callbacks.knapsack._target_=knapsack_rl.verl.CheckConfig",
        "+actor_rollout_ref.rollout.agent.agent_loop_manager_class=knapsack_rl.verl.KnapsackAgentLoopManager",
        "trainer.v1.sampler.custom_sampler.path=pkg://knapsack_rl.verl",
        f"trainer.v1.sampler.custom_sampler.name={buffer}",
        "trainer.checkpoint_callback_class=knapsack_rl.verl.SaveBeliefs",
        *(f"+knapsack.{name}={'none' if getattr(wanted, name) is None else getattr(wanted, name)}" for name in names),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: one for each field of `Settings`."""
    parser.add_argument("--mode", choices=MODES, default="sync", help="verl's trainer.v1.trainer_mode")
    parser.add_argument(
        "--paper", action="store_true", help="also the paper's own setting: model, batch, clipping, ..."
    )
    parser.add_argument("--allocation", choices=CHOICES["allocation"], default="posterior", help="the method")
    parser.add_argument("--features", choices=("text",), help="what calibrated beliefs know prompts by")
    parser.add_argument("--pool", type=int, default=1, help="candidates of a step, in batches")
    parser.add_argument(
        "--min-n", type=int, help="least rollouts of a prompt: 0, or at least 2; by default 2, with a pool 0"
    )
    parser.add_argument("--max-n", type=int, default=128, help="most rollouts of a prompt; rollout.n is the average")
    parser.add_argument("--success-threshold", type=float, default=1.0, help="least reward that counts as a success")
    parser.add_argument(
        "--group-weighting", choices=CHOICES["group_weighting"], default="rollout", help="what weighs the same"
    )
    parser.add_argument("--belief-half-life", type=float, help="in training steps; by default 4 passes over the data")
    parser.add_argument(
        "--prompt-id", choices=CHOICES["prompt_id"], default="index", help="what makes a prompt the same"
    )
    parser.add_argument("--trace-file", default="trace.jsonl", help="in trainer.default_local_dir; 'none' writes none")


def run(arguments: argparse.Namespace) -> int:
    """Print the overrides, ready to stand in a shell command."""
    settings = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    words = [f"{name}={value}" for name, value in PAPER.items()] if arguments.paper else []
    print(" \\\n".join(shlex.quote(word) for word in words + overrides(arguments.mode, **settings)))
    return 0
