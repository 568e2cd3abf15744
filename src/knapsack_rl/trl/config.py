"""TRL's configuration with the fields of the allocation; ``num_generations`` is the *average* number of rollouts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from knapsack_rl.config import AllocationConfig, RuleName, Weighting, from_dialect
from trl import GRPOConfig

# TRL's names of core fields.
ALIASES = {
    "average": "num_generations",
    "min_count": "min_generations",
    "max_count": "max_generations",
    "weighting": "group_weighting",
}


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
    max_generations: int = field(default=128, metadata={"help": "Most rollouts of a prompt."})
    success_threshold: float = field(
        default=1.0, metadata={"help": "Least (weighted) reward that counts as a success for the beliefs."}
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
    trace_file: str | None = field(
        default="trace.jsonl", metadata={"help": "Trace file of the run, relative to output_dir; 'none' for no trace."}
    )

    def __post_init__(self) -> None:
        """Check TRL's fields, then those of the allocation."""
        super().__post_init__()
        if self.trace_file in ("none", ""):  # a command line cannot express None
            self.trace_file = None
        if self.features not in ("hidden_states", "none"):
            raise ValueError(f"features is {self.features!r}: choose 'hidden_states' or 'none'")
        self._chosen_pool, self._chosen_least = self.pool, self.min_generations
        self._allocation = from_dialect(ALIASES, vars(self))
        self._take_resolved()
        if self.allocation.pool is not None and self.allocation.pool > self.num_generations:
            raise ValueError(
                f"pool is {self.pool} and num_generations {self.num_generations}: the candidates share the rows of a "
                "group, so there can be at most num_generations"
            )
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
        return float(self.steps_per_generation * self.num_iterations / self.gradient_accumulation_steps)

    @property
    def wants_hidden_states(self) -> bool:
        """Whether the configured rule uses hidden states."""
        return self.rule == "calibrated" and self.features == "hidden_states"

    def fit_pool(self, most: int) -> None:
        """Limit the default pool to ``most`` prompts per trained prompt; an explicitly set pool is not changed."""
        pool = self.allocation.pool
        if self._chosen_pool is None and pool is not None and pool > most:
            self._allocation = dataclasses.replace(self.allocation, pool=max(most, 1), min_count=self._chosen_least)
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
