"""What the user may set (``+knapsack.<name>=...`` on verl's command line), and which of verl's settings cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from knapsack_rl.allocator import KnapsackAllocator, Method, make_allocator

# Estimators whose groups are found by uid, and that no special case of verl's recognises by name.
PROMPT_WEIGHTED = (
    "grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "opo", "gpg", "reinforce_plus_plus_baseline",
)  # fmt: skip

# Policy losses in which a factor on a rollout's advantages is a factor on its loss. The others choose tokens or shape
# the loss by the size of the advantage.
_LINEAR_LOSSES = ("vanilla", "gspo", "gpg", "geo_mean", "cispo")

_HOOKS = {
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class": "which plans",
    "trainer.v1.sampler.custom_sampler.path": "which learns",
    "trainer.v1.sampler.custom_sampler.name": "which learns",
    "trainer.checkpoint_callback_class": "which saves",
}


class ConfigError(ValueError):
    """A setting of ours, or one of verl's, with which the allocation cannot work; the message says what to change."""


@dataclass(frozen=True)
class Settings:
    """The fields of ``+knapsack``.

    Attributes:
        allocation: how counts are chosen: ``posterior``, ``paper``, or ``uniform`` (stock, with beliefs and trace).
        min_n: least rollouts of a prompt: at least 2, or 0 to let prompts be left out.
        max_n: most rollouts of a prompt; the average stays verl's ``rollout.n``.
        success_threshold: least reward that counts as a success for the beliefs.
        group_weighting: ``rollout`` (a prompt weighs by its number of rollouts) or ``prompt`` (all weigh the same).
        belief_half_life: training steps after which an observation counts half; by default 4 passes over the data.
        prompt_id: ``index`` tells rows of the data set apart by their index, source and content; ``content`` lets rows
            with the same prompt share one belief.
        trace_file: record of the run, relative to ``trainer.default_local_dir``; ``none`` writes none.

    Raises:
        ConfigError: a value that makes no sense.
    """

    allocation: Method = "posterior"
    min_n: int = 2
    max_n: int = 128
    success_threshold: float = 1.0
    group_weighting: Literal["rollout", "prompt"] = "rollout"
    belief_half_life: float | None = None
    prompt_id: Literal["index", "content"] = "index"
    trace_file: str | None = "trace.jsonl"

    def __post_init__(self) -> None:
        for name, kind in (("min_n", int), ("max_n", int), ("success_threshold", float), ("belief_half_life", float)):
            value = getattr(self, name)
            number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            if not number and not (name == "belief_half_life" and value is None):
                raise ConfigError(f"knapsack.{name} is {value!r}: it must be a number")
        for name, choices in (("group_weighting", ("rollout", "prompt")), ("prompt_id", ("index", "content"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"knapsack.{name} is {getattr(self, name)!r}: choose {' or '.join(choices)}")
        try:
            self.make_allocator()
        except ValueError as error:
            raise ConfigError(f"+knapsack: {error}") from error

    @classmethod
    def of(cls, config: Any) -> Settings:
        """The settings in verl's whole configuration.

        Raises:
            ConfigError: a name that is not a setting, or a bad value.
        """
        given: Mapping[str, Any] = dict(config.get("knapsack") or {})
        names = [field.name for field in fields(cls)]
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ConfigError(f"knapsack.{unknown[0]} is not a setting: there are {', '.join(names)}")
        if given.get("trace_file") in ("none", ""):
            given = {**given, "trace_file": None}
        return cls(**given)

    def make_allocator(self) -> KnapsackAllocator:
        """The allocator these settings describe; without a half-life it is set when the data are known."""
        half_life = 64.0 if self.belief_half_life is None else self.belief_half_life
        return make_allocator(self.allocation, self.min_n, self.max_n, half_life)


def check_config(config: Any) -> Settings:
    """Refuse what cannot work, before anything heavy is started.

    Raises:
        ConfigError: with what to change.
    """
    _check_trainer(config)
    for path, role in _HOOKS.items():
        if not select(config, path):
            raise ConfigError(f"{path} is not set, {role}: `knapsack-rl verl-args` prints all overrides")
    settings = Settings.of(config)
    rollout = config.actor_rollout_ref.rollout
    if not settings.min_n <= rollout.n <= settings.max_n:
        raise ConfigError(
            f"actor_rollout_ref.rollout.n ({rollout.n}) is the average number of rollouts, so it must lie between "
            f"knapsack.min_n ({settings.min_n}) and knapsack.max_n ({settings.max_n})"
        )
    reward_model = config.reward.reward_model
    if reward_model.enable and not reward_model.enable_resource_pool:
        raise ConfigError(
            "a colocated reward model scores rollouts only after the last point at which they can be learned from: "
            "give it its own GPUs (reward.reward_model.enable_resource_pool=True), or use a reward function"
        )
    if select(config, "algorithm.filter_groups.enable"):
        raise ConfigError(
            "algorithm.filter_groups throws away finished groups and generates others of another size, so that a step "
            "no longer trains on train_batch_size x rollout.n rollouts; the knapsack spends little on such groups in "
            "the first place: set algorithm.filter_groups.enable=False"
        )
    if select(config, "skip.rollout_tq.enable"):
        raise ConfigError("skip.rollout_tq replays stored rollouts, which no plan of ours asked for: set it to False")
    _check_weighting(config, settings)
    return settings


def select(config: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for name in path.split("."):
        config = config.get(name) if config is not None else None
    return config


def _check_trainer(config: Any) -> None:
    """The trainers that repeat every prompt rollout.n times, before any hook could change it."""
    if "async_training" in config:
        name = "fully_async_policy"
    elif "rollout" in config:
        name = "one_step_off_policy"
    elif not config.trainer.get("use_v1", False):
        name = "RayPPOTrainer (trainer.use_v1=False)"
    else:
        return
    raise ConfigError(
        f"the legacy trainer {name} generates the same number of rollouts for every prompt: run "
        "python -m verl.trainer.main_ppo, with trainer.v1.trainer_mode=sync, colocate_async or separate_async"
    )


def _check_weighting(config: Any, settings: Settings) -> None:
    if settings.group_weighting == "rollout":
        return
    estimator, loss = config.algorithm.adv_estimator, select(config, "actor_rollout_ref.actor.policy_loss.loss_mode")
    if estimator not in PROMPT_WEIGHTED:
        raise ConfigError(
            f"knapsack.group_weighting=prompt cannot weigh the advantages of {estimator!r}: choose "
            f"algorithm.adv_estimator from {', '.join(PROMPT_WEIGHTED)}, or group_weighting=rollout"
        )
    if (loss or "vanilla") not in _LINEAR_LOSSES:
        raise ConfigError(
            f"knapsack.group_weighting=prompt scales advantages, and the policy loss {loss!r} does not scale with "
            f"them: choose loss_mode from {', '.join(_LINEAR_LOSSES)}, or group_weighting=rollout"
        )
