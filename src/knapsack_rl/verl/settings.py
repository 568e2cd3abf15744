"""What the user may set (``+knapsack.<name>=...`` on verl's command line), and which of verl's settings cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from knapsack_rl.allocator import KnapsackAllocator, Method, make_allocator
from knapsack_rl.calibrated import Features
from knapsack_rl.pool import check_pool, least_rollouts
from knapsack_rl.text_features import TextFeatures

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


# Settings that are one of a few words.
CHOICES: Mapping[str, tuple[str | None, ...]] = {
    "allocation": get_args(Method),
    "features": ("text", None),
    "group_weighting": ("rollout", "prompt"),
    "prompt_id": ("index", "content"),
}


class ConfigError(ValueError):
    """A setting of ours, or one of verl's, with which the allocation cannot work; the message says what to change."""


@dataclass(frozen=True)
class Settings:
    """The fields of ``+knapsack``.

    Attributes:
        allocation: how counts are chosen: ``posterior``, ``calibrated``, ``paper``, or ``uniform`` (stock, with beliefs
            and trace).
        features: what ``calibrated`` knows prompts by, beside their record: ``text``, or nothing.
        pool: candidates of a step, in batches: with more than 1, the plan also chooses which prompts are trained on.
        min_n: least rollouts of a prompt: at least 2, or 0 to let prompts be left out; by default 2, with a pool 0.
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
    features: Literal["text"] | None = None
    pool: int = 1
    min_n: int | None = None
    max_n: int = 128
    success_threshold: float = 1.0
    group_weighting: Literal["rollout", "prompt"] = "rollout"
    belief_half_life: float | None = None
    prompt_id: Literal["index", "content"] = "index"
    trace_file: str | None = "trace.jsonl"

    def __post_init__(self) -> None:
        for name in ("pool", "min_n", "max_n", "success_threshold", "belief_half_life"):
            value, whole = getattr(self, name), name in ("pool", "min_n", "max_n")
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number and not (name in ("min_n", "belief_half_life") and value is None):
                raise ConfigError(f"knapsack.{name} is {value!r}: it must be a number")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                listed = " or ".join(str(choice).lower() for choice in choices)
                raise ConfigError(f"knapsack.{name} is {getattr(self, name)!r}: choose {listed}")
        object.__setattr__(self, "min_n", least_rollouts(self.min_n, self.pool))
        try:
            check_pool(self.pool, self.allocation)
            self.make_allocator(self.make_features())
        except (ImportError, ValueError) as error:
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
        for name in ("trace_file", "features"):
            if given.get(name) in ("none", ""):
                given = {**given, name: None}
        return cls(**given)

    def make_features(self) -> TextFeatures | None:
        """What prompts are known by, if they are to be.

        Raises:
            ImportError: the library that it needs is missing.
        """
        return TextFeatures() if self.features == "text" else None

    def make_allocator(self, features: Features | None = None) -> KnapsackAllocator:
        """The allocator these settings describe; without a half-life it is set when the data are known."""
        half_life = 64.0 if self.belief_half_life is None else self.belief_half_life
        least = least_rollouts(self.min_n, self.pool)
        return make_allocator(self.allocation, least, self.max_n, half_life, features)


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
    of_pool = f" / knapsack.pool ({settings.pool})" if settings.pool > 1 else ""
    if not least_rollouts(settings.min_n, settings.pool) <= rollout.n / settings.pool <= settings.max_n:
        raise ConfigError(
            f"actor_rollout_ref.rollout.n ({rollout.n}){of_pool} is the average number of rollouts, so it must lie "
            f"between knapsack.min_n ({settings.min_n}) and knapsack.max_n ({settings.max_n})"
        )
    mode = config.trainer.v1.trainer_mode
    if settings.pool > 1 and mode != "sync":
        raise ConfigError(
            f"knapsack.pool={settings.pool} does not fit trainer.v1.trainer_mode={mode}: there a step trains on the "
            "groups that are back first, and candidates without rollouts are back at once: use sync, or pool=1"
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
