"""`knapsack-rl verl-args`: the overrides that turn a verl command into a knapsack run."""

from __future__ import annotations

import argparse
import shlex
from typing import Any, get_args

from knapsack_rl.config import MOST, RULES, Weighting
from knapsack_rl.verl.settings import DEFAULTS, Settings

MODES = ("sync", "colocate_async", "separate_async")

# The paper's scripts (Qwen2.5-Math-7B on DAPO-Math-17k), without what equals verl's defaults.
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
        **settings: names and values of `DEFAULTS`; those that keep their default are left out.

    Raises:
        ConfigError: a setting that makes no sense.
    """
    # The average is verl's rollout.n, which is not known here: max_n is an average that the limits always allow.
    average = settings.get("max_n") or MOST
    Settings.of({"knapsack": settings, "actor_rollout_ref": {"rollout": {"n": average}}})
    changed = {name: settings[name] for name in DEFAULTS if settings.get(name, DEFAULTS[name]) != DEFAULTS[name]}
    buffer = "KnapsackReplayBuffer" if mode == "sync" else "KnapsackReplayBufferAsync"
    return [
        f"trainer.v1.trainer_mode={mode}",
        "+hydra.callbacks.knapsack._target_=knapsack_rl.verl.CheckConfig",
        "+actor_rollout_ref.rollout.agent.agent_loop_manager_class=knapsack_rl.verl.KnapsackAgentLoopManager",
        "trainer.v1.sampler.custom_sampler.path=pkg://knapsack_rl.verl",
        f"trainer.v1.sampler.custom_sampler.name={buffer}",
        "trainer.checkpoint_callback_class=knapsack_rl.verl.SaveBeliefs",
        *(f"+knapsack.{name}={value}" for name, value in changed.items()),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: one for each setting."""
    add, either = parser.add_argument, argparse.BooleanOptionalAction
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    add("--mode", choices=MODES, default="sync", help="verl's trainer.v1.trainer_mode")
    add("--paper", action="store_true", help="also print the paper's setting: model, batch, clipping, ...")
    add("--rule", choices=RULES, help="how counts are chosen")
    add("--features", metavar="WHAT", help="what tells prompts apart for the rule 'calibrated': 'text', 'none', or a "
        "file of `knapsack-rl features` (default: texts where scikit-learn is installed)")  # fmt: skip
    add("--ask", action=either, help="ask verl's engine for one greedy token of each candidate, which says how sure "
        "the policy is (default: for 'calibrated', where the engine can be asked)")  # fmt: skip
    add("--pool", **number, help="batches of prompts offered to a step; with more than 1 the plan also chooses prompts "
        "(default: 4 for 'calibrated' and 'beta', or what the data can fill)")  # fmt: skip
    add("--min", dest="min_n", **number, help="least rollouts of a prompt (default: --min-group, with a pool 0)")
    add("--max", dest="max_n", **number, help="most rollouts of a prompt (default: 128, or 4 times the average, which "
        "is rollout.n)")  # fmt: skip
    add("--min-group", **number, help="a prompt gets none, or at least this many")
    add("--success-threshold", type=float, metavar="X", help="least reward that is a success (default: found)")
    add("--weighting", dest="group_weighting", choices=get_args(Weighting), help="what weighs the same in the loss "
        "(default: prompt for 'calibrated' and 'beta', where estimator and loss allow it, else rollout)")  # fmt: skip
    add("--half-life", type=float, metavar="STEPS", help="training steps after which an observation counts half "
        "(default: 4 passes over the data)")  # fmt: skip
    add("--keep-successes", action=either, help="let a prompt's last success replace a rollout of its groups that fail "
        "as a whole (default: no)")  # fmt: skip
    add("--prompt-id", choices=("index", "content"), help="what rows without a column prompt_id are told apart by: all "
        "columns, or all but the index")  # fmt: skip
    add("--trace-file", metavar="FILE", help="record of the run, in trainer.default_local_dir; 'none' writes none")
    parser.set_defaults(**DEFAULTS)


def run(arguments: argparse.Namespace) -> int:
    """Print the overrides, ready to stand in a shell command."""
    settings = {name: getattr(arguments, name) for name in DEFAULTS}
    words = [f"{name}={value}" for name, value in PAPER.items()] if arguments.paper else []
    print(" \\\n".join(shlex.quote(word) for word in words + overrides(arguments.mode, **settings)))
    return 0
