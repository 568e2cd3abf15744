"""Settings (``+knapsack.<name>=...`` on verl's command line), and the settings of verl that cannot work with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from knapsack_rl.config import CONSTANT_SIZE_FIELDS, AllocationConfig, from_dialect
from knapsack_rl.features.prompts import AUTO, TEXT, PromptLooks, resolved
from knapsack_rl.features.text import TextFeatures
from knapsack_rl.kept import KeptSuccesses

# Names in verl's configuration of the fields of `AllocationConfig` that have another name there.
ALIASES = {
    "average": "actor_rollout_ref.rollout.n",
    "min_count": "min_n",
    "max_count": "max_n",
    "weighting": "group_weighting",
}

_CORE = [core for core in fields(AllocationConfig) if core.name in CONSTANT_SIZE_FIELDS]

# Defaults by setting.
DEFAULTS: Mapping[str, Any] = {
    **{ALIASES.get(core.name, core.name): core.default for core in _CORE if core.name != "average"},
    "features": AUTO,
    "ask": True,
    "keep_successes": False,
    "kept_max_age": None,
    "prompt_id": "index",
    "trace_file": "trace.jsonl",
}

# Choices of the settings that `AllocationConfig` does not check.
_CHOICES: Mapping[str, tuple[object, ...]] = {
    "ask": (True, False), "keep_successes": (True, False), "prompt_id": ("index", "content"),
}  # fmt: skip

# Settings beside those of `AllocationConfig`.
_OWN = ("features", "ask", "keep_successes", "kept_max_age", "prompt_id", "trace_file")
# Settings for which nothing is a choice.
_NONE = ("features", "trace_file")

# Estimators that find groups by uid, and that verl does not treat specially by name.
PROMPT_WEIGHTED = (
    "grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "opo", "gpg", "reinforce_plus_plus_baseline",
)  # fmt: skip

# Policy losses in which a factor on a rollout's advantages is a factor on its loss. The others select tokens, or shape
# the loss, by the size of the advantage.
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
        allocation: ``rule``, ``pool``, ``min_n``, ``max_n``, ``success_threshold``, ``group_weighting`` and
            ``half_life``, under their core names; its ``average`` is verl's ``rollout.n``.
        features: what tells prompts apart under ``rule=calibrated``: ``text``, a file that ``knapsack-rl features`` has
            written, or None; ``auto`` has been resolved.
        ask: ask for one greedy token of each candidate, under ``rule=calibrated``, where the engine can be asked.
        keep_successes: let a prompt's last success replace a rollout of its groups that fail as a whole.
        kept_max_age: generation steps after which a kept success is not used any more; None for never.
        prompt_id: how rows without a column ``prompt_id`` are told apart: ``index`` by all columns, ``content`` by all
            but the index, so that copies of a row share one belief.
        trace_file: record of the run, relative to ``trainer.default_local_dir``; ``none`` writes none.
        given: names that the user has set, to anything but the core's None.
    """

    allocation: AllocationConfig
    features: str | None
    ask: bool
    keep_successes: bool
    kept_max_age: float | None
    prompt_id: Literal["index", "content"]
    trace_file: str | None
    given: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: Any) -> Settings:
        """Read and check the settings in verl's configuration.

        Raises:
            ConfigError: a name that is not a setting, or a bad value.
        """
        given: dict[str, Any] = dict(config.get("knapsack") or {})
        for name, value in given.items():
            if name not in DEFAULTS:
                raise ConfigError(f"knapsack.{name} is not a setting: there are {', '.join(DEFAULTS)}")
            if name in _NONE and value in ("none", ""):
                given[name] = None
        values = {**DEFAULTS, **given}
        for name, choices in _CHOICES.items():
            if values[name] not in choices:
                listed = " or ".join(str(choice).lower() for choice in choices)
                raise ConfigError(f"knapsack.{name} is {values[name]!r}: choose {listed}")
        own = {name: values[name] for name in _OWN}
        try:
            KeptSuccesses(max_age=own["kept_max_age"])
            named = frozenset(name for name, value in given.items() if value is not None or name in _NONE)
            settings = cls(allocation=_allocation(config, values), **own, given=named)
            if settings.features == TEXT:
                TextFeatures()  # names the library that it needs
        except (ImportError, ValueError) as error:
            raise ConfigError(str(error)) from error
        return settings._looking(config)

    def _looking(self, config: Any) -> Settings:
        """With the looks that the rule uses and the engine gives.

        Raises:
            ConfigError: looks that were asked for and cannot be.
        """
        rule, problem = self.allocation.rule, asking_problem(config)
        if rule != "calibrated":
            for name in ("features", "ask"):
                if name in self.given and getattr(self, name) not in (AUTO, None, False):
                    raise ConfigError(
                        f"knapsack.{name}={getattr(self, name)} has no effect under knapsack.rule={rule}: use "
                        "rule=calibrated, or leave it away"
                    )
            return replace(self, features=None, ask=False)
        if self.ask and problem and "ask" in self.given:
            raise ConfigError(f"knapsack.ask=True, and {problem}: set knapsack.ask=False")
        return replace(self, features=resolved(self.features), ask=self.ask and not problem)

    def by_name(self) -> dict[str, Any]:
        """All values, defaults resolved, by their names in verl's configuration."""
        core = {ALIASES.get(core.name, core.name): getattr(self.allocation, core.name) for core in _CORE}
        return core | {name: value for name, value in vars(self).items() if name not in ("allocation", "given")}

    def with_pool_of(self, batches: int) -> Settings:
        """The settings with the pool that so many batches of data can fill.

        Raises:
            ConfigError: they cannot fill the pool that was asked for.
        """
        # The two that follow from one another, unless they were set.
        open_ = {name for name in ("pool", "min_count") if ALIASES.get(name, name) not in self.given}
        chosen = {name: value for name, value in vars(self.allocation).items() if name not in open_}
        allocation = from_dialect({}, chosen, most_pool=batches)
        assert allocation.pool is not None
        if allocation.pool > max(batches, 1):
            raise ConfigError(
                f"knapsack.pool={allocation.pool} asks for {allocation.pool} batches of candidates a step, and the "
                f"training data have {batches}: use a smaller pool, or a smaller data.train_batch_size"
            )
        return replace(self, allocation=allocation)


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
    reward_model = config.reward.reward_model
    if reward_model.enable and not reward_model.enable_resource_pool:
        raise ConfigError(
            "a colocated reward model scores rollouts only after the last point at which they can be learned from: "
            "give it its own GPUs (reward.reward_model.enable_resource_pool=True), or use a reward function"
        )
    if select(config, "algorithm.filter_groups.enable"):
        raise ConfigError(
            "algorithm.filter_groups replaces finished groups by groups of another size, so that a step no longer "
            "trains on train_batch_size x rollout.n rollouts; the knapsack spends little on such groups in the first "
            "place: set algorithm.filter_groups.enable=False"
        )
    if select(config, "skip.rollout_tq.enable"):
        raise ConfigError("skip.rollout_tq replays stored rollouts, which belong to no plan: set it to False")
    try:
        PromptLooks(settings.features)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"knapsack.features={settings.features}: {error}") from error
    problem = _keeping_problem(config, settings)
    if problem:
        raise ConfigError(f"knapsack.keep_successes=True, and {problem}: set knapsack.keep_successes=False")
    problem = weighting_problem(config)
    if settings.allocation.weighting == "prompt" and problem:
        raise ConfigError(f"knapsack.group_weighting=prompt {problem}, or group_weighting=rollout")
    return settings


def select(config: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for name in path.split("."):
        config = config.get(name) if config is not None else None
    return config


def _allocation(config: Any, values: Mapping[str, Any]) -> AllocationConfig:
    """The core configuration; without a ``group_weighting``, by rollout where verl cannot weight by prompt."""
    aliases = {core.name: f"knapsack.{ALIASES.get(core.name, core.name)}" for core in _CORE}
    aliases["average"] = ALIASES["average"]
    given = {f"knapsack.{name}": value for name, value in values.items()}
    allocation = from_dialect(aliases, given | {ALIASES["average"]: select(config, ALIASES["average"])})
    if values["group_weighting"] is None and weighting_problem(config):
        allocation = replace(allocation, weighting="rollout")
    most = rollouts_of_an_update(config)
    if most is None or allocation.rule == "uniform" or (allocation.max_count or 0) <= most:
        return allocation
    if values["max_n"] is not None or allocation.min_group > most:
        name = "max_n" if values["max_n"] is not None else "min_group"
        raise ConfigError(
            f"knapsack.{name}={values[name]}: one local update of separate_async has {most} rollouts "
            "(data.train_batch_size x rollout.n / parameter_sync_step), and a group is trained on as a whole: set it "
            f"to at most {most}, or a smaller trainer.v1.separate_async.parameter_sync_step"
        )
    return replace(allocation, max_count=most)


def rollouts_of_an_update(config: Any) -> int | None:
    """Rollouts of one of several local updates of a step; None in the modes that make one."""
    if select(config, "trainer.v1.trainer_mode") != "separate_async":
        return None
    parts = int(select(config, "trainer.v1.separate_async.parameter_sync_step") or 1)
    return int(config.data.train_batch_size) * int(select(config, ALIASES["average"])) // parts


def _keeping_problem(config: Any, settings: Settings) -> str | None:
    """Why successes cannot be kept, where they are to be; None if they can."""
    if not settings.keep_successes:
        return None
    if settings.allocation.rule == "uniform":
        return "rule=uniform trains on what verl trains on without this package"
    if not select(config, "actor_rollout_ref.rollout.calculate_log_probs"):
        return "rollout.calculate_log_probs is False: log-probabilities are kept with a rollout"
    if select(config, "actor_rollout_ref.rollout.enable_rollout_routing_replay"):
        return "rollout.enable_rollout_routing_replay replays the experts of each rollout, which are not kept"
    if select(config, "distillation.enabled"):
        return "distillation needs a teacher's log-probabilities of each rollout, which are not kept"
    return None


def asking_problem(config: Any) -> str | None:
    """Why the engine cannot be asked for one token; None if it can."""
    if select(config, "actor_rollout_ref.rollout.name") != "trtllm":
        return None
    return "rollout.name=trtllm ignores max_tokens, so that a look would cost a whole answer"


def weighting_problem(config: Any) -> str | None:
    """Why verl cannot weight by prompt, and what to choose instead; None if it can."""
    estimator = select(config, "algorithm.adv_estimator")
    loss = select(config, "actor_rollout_ref.actor.policy_loss.loss_mode") or "vanilla"
    if estimator not in PROMPT_WEIGHTED:
        return (
            f"cannot weight the advantages of {estimator!r}: choose algorithm.adv_estimator from "
            f"{', '.join(PROMPT_WEIGHTED)}"
        )
    if loss not in _LINEAR_LOSSES:
        return (
            f"scales advantages, and the policy loss {loss!r} does not scale with them: choose loss_mode from "
            f"{', '.join(_LINEAR_LOSSES)}"
        )
    return None


def _check_trainer(config: Any) -> None:
    """Refuse the trainers that repeat every prompt rollout.n times before any hook could change it."""
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
