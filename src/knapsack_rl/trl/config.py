"""TRL's configuration with the fields of the allocation; ``num_generations`` is the *average* number of rollouts."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from knapsack_rl.config import AllocationConfig, RuleName, Weighting, from_dialect
from knapsack_rl.trl.callback import block_steps
from knapsack_rl.trl.checks import check_pool
from knapsack_rl.trl.unsloth import keep_unsloth_defaults
from trl import GRPOConfig

# TRL's names of core fields.
ALIASES = {
    "average": "num_generations",
    "min_count": "min_generations",
    "max_count": "max_generations",
    "weighting": "group_weighting",
}


@keep_unsloth_defaults
@dataclass
class KnapsackGRPOConfig(GRPOConfig):  # type: ignore[misc]  # TRL ships no types
    """`trl.GRPOConfig` with the fields of `AllocationConfig`; the meaning of TRL's fields is unchanged.

    Raises:
        ValueError: limits that cannot be met by an average of ``num_generations``, or a save schedule that the best
            model cannot be loaded from.
    """

    rule: RuleName = field(
        default="calibrated",
        metadata={
            "help": "How counts are chosen: 'calibrated' (beliefs calibrated on their own forecasts, with features of "
            "prompts) or 'beta' (beliefs from a prompt's own counts), both by expected value; 'paper' (the authors' "
            "estimator and rules); 'uniform' (stock GRPO, with beliefs and trace)."
        },
    )
    features: Literal["hidden_states", "none"] = field(
        default="hidden_states",
        metadata={
            "help": "Features of prompts for 'calibrated': the policy's own 'hidden_states' at the end of the prompt "
            "and its confidence in the next token (one prefill of the candidates), or 'none'. Other rules use no "
            "features."
        },
    )
    pool: int | None = field(
        default=None,
        metadata={
            "help": "Prompts offered to a step for each that TRL would train on. With more than 1 the plan also "
            "chooses which prompts are trained on; rollouts and steps stay the same. At most num_generations. Default: "
            "4, or less if the data set is too small; 1 for 'paper' and 'uniform', streams, and min_generations above "
            "0."
        },
    )
    min_generations: int | None = field(
        default=None,
        metadata={
            "help": "Least rollouts of a prompt: at least 2, or 0 to allow prompts to be left out, which a pool "
            "requires. Default: 0 with a pool, else 2."
        },
    )
    max_generations: int | None = field(
        default=None,
        metadata={"help": "Most rollouts of a prompt. Default: 128, or 4 times num_generations where that is more."},
    )
    min_group: int = field(
        default=AllocationConfig.min_group,
        metadata={"help": "Rollouts of the smallest group: a prompt gets none, or at least so many; from 2."},
    )
    success_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Least (weighted) reward that counts as a success for the beliefs. Default: 1, or the highest "
            "reward where the rewards show that it is another one."
        },
    )
    group_weighting: Weighting | None = field(
        default=None,
        metadata={
            "help": "Weight of a prompt in the loss. 'rollout': proportional to its number of rollouts (the paper's "
            "code); 'prompt': equal for all prompts, by scaled advantages. Default: 'prompt' for 'calibrated' and "
            "'beta', else 'rollout'."
        },
    )
    half_life: float | None = field(
        default=None,
        metadata={"help": "Generation steps after which an observation counts half. Default: 4 passes over the data."},
    )
    keep_successes: bool = field(
        default=False,
        metadata={
            "help": "Keep the last success of every prompt, and let it replace a rollout of a group that fails as a "
            "whole. The kept rollout is off-policy."
        },
    )
    kept_max_age: float | None = field(
        default=None,
        metadata={"help": "Generation steps after which a kept success is not used any more. Default: never."},
    )
    trace_file: str | None = field(
        default="trace.jsonl", metadata={"help": "Trace file of the run, relative to output_dir; 'none' for no trace."}
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give a class that inherits from other configs as well the defaults of all of them, in any order of bases."""
        super().__init_subclass__(**kwargs)
        merge_fields(cls, KnapsackGRPOConfig)

    def __post_init__(self) -> None:
        """Check TRL's fields, then those of the allocation."""
        # First, because TRL computes with the average before it is known to be a number.
        self._allocation = from_dialect(ALIASES, vars(self))
        super().__post_init__()
        if self.generation_batch_size < self.num_generations:
            raise ValueError(
                f"generation_batch_size is {self.generation_batch_size} and num_generations {self.num_generations}: a "
                "batch must hold the rollouts of one prompt at least"
            )
        if self.generation_batch_size < self.min_group:
            raise ValueError(
                f"generation_batch_size is {self.generation_batch_size} and min_group {self.min_group}: a batch must "
                "hold the smallest group at least"
            )
        if self.trace_file in ("none", ""):  # a command line cannot express None
            self.trace_file = None
        if self.features not in ("hidden_states", "none"):
            raise ValueError(f"features is {self.features!r}: choose 'hidden_states' or 'none'")
        self._chosen_pool, self._chosen_least = self.pool, self.min_generations
        self._take_resolved()
        check_pool(self.allocation.pool, self.num_generations)
        if self.load_best_model_at_end and self.save_strategy == "steps" and not self._saves_between_blocks():
            raise ValueError(
                f"load_best_model_at_end needs checkpoints exactly every save_steps={self.save_steps}, but only every "
                f"{self.generation_block_steps:g} optimizer steps a generated batch is used up and a resume is exact: "
                "make save_steps a multiple of that"
            )

    @property
    def allocation(self) -> AllocationConfig:
        """The allocation's fields under their core names, checked."""
        return self._allocation

    @property
    def generation_block_steps(self) -> float:
        """Optimizer steps per generated batch."""
        return block_steps(self)

    @property
    def wants_hidden_states(self) -> bool:
        """Whether the configured rule uses hidden states."""
        return self.rule == "calibrated" and self.features == "hidden_states"

    def fit_pool(self, most: int) -> None:
        """Limit the default pool to ``most`` prompts per trained prompt; an explicitly set pool is not changed."""
        chosen = {"pool": self._chosen_pool, "min_generations": self._chosen_least}
        self._allocation = from_dialect(ALIASES, vars(self) | chosen, most_pool=most)
        self._take_resolved()

    def _take_resolved(self) -> None:
        """Write the resolved defaults into the fields, so that a printed config shows them."""
        for core, name in {"pool": "pool", **ALIASES}.items():
            setattr(self, name, getattr(self._allocation, core))

    def _saves_between_blocks(self) -> bool:
        """Whether checkpoints are due at the ends of generated batches only.

        ``save_steps`` below 1 is a share of the run, whose length is unknown here; the callback delays those saves.
        """
        return self.save_steps < 1 or (self.save_steps / self.generation_block_steps).is_integer()


def merge_fields(cls: type, base: type) -> None:
    """Make ``cls`` a dataclass whose fields are those of their most specific definition among its bases.

    A dataclass lists inherited fields as its own. So of two bases that share a parent, the first one would bring back
    defaults of the parent that the second one has changed.

    Args:
        cls: a class in the making, not yet a dataclass.
        base: a class whose bases are one line; nothing is done if ``cls`` has no others.
    """
    others = [each for each in cls.__mro__[1:] if each not in base.__mro__ and dataclasses.is_dataclass(each)]
    if not others:
        return
    merged: dict[str, dataclasses.Field[Any]] = {}  # as a dataclass would have it
    wanted: dict[str, tuple[dataclasses.Field[Any], type]] = {}  # with the class that defines it
    for each in reversed(cls.__mro__[1:]):
        listed = each.__dict__.get("__dataclass_fields__", {})
        merged |= listed
        wanted |= {name: (listed[name], each) for name in inspect.get_annotations(each) if name in listed}
    own = inspect.get_annotations(cls)
    lost = {name: each for name, each in wanted.items() if name not in own and merged[name] is not each[0]}
    types = {name: get_type_hints(owner, include_extras=True)[name] for name, (_, owner) in lost.items()}
    cls.__annotations__ = types | own
    for name, (given, _) in lost.items():
        setattr(cls, name, _copy_of(given))
    dataclass(cls)
    for given in dataclasses.fields(cls):
        # dataclass() removes these attributes; a decorator on the class, which is applied after this, needs them.
        if given.name in cls.__annotations__ and given.default_factory is not dataclasses.MISSING:
            setattr(cls, given.name, _copy_of(given))


def _copy_of(given: dataclasses.Field[Any]) -> Any:
    """A field like this one, for another class."""
    return dataclasses.field(
        default=given.default,
        default_factory=given.default_factory,
        init=given.init,
        repr=given.repr,
        hash=given.hash,
        compare=given.compare,
        metadata=given.metadata,
        kw_only=given.kw_only,
    )
