"""TRL's configuration plus ours, in TRL's dialect: ``num_generations`` stays the *average* number of rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from knapsack_rl.allocator import KnapsackAllocator, make_allocator
from knapsack_rl.beliefs import FADING_PASSES
from knapsack_rl.calibrated import Features
from knapsack_rl.pool import CHOOSING, check_pool, default_pool, least_rollouts
from trl import GRPOConfig


@dataclass
class KnapsackGRPOConfig(GRPOConfig):  # type: ignore[misc]  # TRL ships no types
    """`trl.GRPOConfig` with the fields of the allocation; all of TRL's fields mean what they meant.

    Raises:
        ValueError: limits that cannot be met by an average of ``num_generations``, or a save schedule that the best
            model cannot be loaded from.
    """

    allocation: Literal["calibrated", "posterior", "paper", "uniform"] = field(
        default="calibrated",
        metadata={
            "help": "How counts are chosen: 'calibrated' (beliefs that learn from their own forecasts, and from what "
            "prompts look like), 'posterior' (Beta beliefs with forgetting), both by expected value; 'paper' (the "
            "authors' estimator and rules) or 'uniform' (stock GRPO, with beliefs and trace)."
        },
    )
    belief_features: Literal["hidden_states", "none"] = field(
        default="hidden_states",
        metadata={
            "help": "What 'calibrated' knows prompts by, beside their record: the policy's own 'hidden_states' at the "
            "end of the prompt and how sure it is of the next token (one prefill of the candidates), or 'none'. Other "
            "allocations use no features."
        },
    )
    candidate_pool: int | None = field(
        default=None,
        metadata={
            "help": "Prompts offered to a step for each that TRL would train on. With more than 1 the plan also "
            "chooses which prompts are trained on; rollouts and steps stay the same. At most num_generations. "
            "Default: 4, or what the data set can fill; 1 for 'paper' and 'uniform', streams, and min_generations "
            "above 0."
        },
    )
    min_generations: int | None = field(
        default=None,
        metadata={
            "help": "Least rollouts of a prompt: at least 2, or 0 to let prompts be left out, as a pool must. "
            "Default: 2, with a pool 0."
        },
    )
    max_generations: int = field(default=128, metadata={"help": "Most rollouts of a prompt."})
    success_threshold: float = field(
        default=1.0, metadata={"help": "Least (weighted) reward that counts as a success for the beliefs."}
    )
    group_weighting: Literal["rollout", "prompt"] | None = field(
        default=None,
        metadata={
            "help": "'rollout': a prompt weighs in the loss by its number of rollouts (the paper's code); 'prompt': "
            "advantages are scaled so that every prompt weighs the same. Default: 'prompt' for 'calibrated' and "
            "'posterior', else 'rollout'."
        },
    )
    belief_half_life: float | None = field(
        default=None,
        metadata={"help": "Generation steps after which an observation counts half. Default: 4 passes over the data."},
    )
    trace_file: str | None = field(
        default="trace.jsonl", metadata={"help": "Record of the run, relative to output_dir; 'none' writes none."}
    )

    def __post_init__(self) -> None:
        """Check TRL's fields, then ours."""
        super().__post_init__()
        if self.trace_file in ("none", ""):  # a command line cannot say None
            self.trace_file = None
        if self.group_weighting is None:
            self.group_weighting = "prompt" if self.allocation in CHOOSING else "rollout"
        if self.group_weighting not in ("rollout", "prompt"):
            raise ValueError(f"group_weighting is {self.group_weighting!r}: choose 'rollout' or 'prompt'")
        if self.belief_half_life is not None and not self.belief_half_life > 0:
            raise ValueError(f"belief_half_life is {self.belief_half_life}: it must be positive, or None for 4 passes")
        if self.belief_features not in ("hidden_states", "none"):
            raise ValueError(f"belief_features is {self.belief_features!r}: choose 'hidden_states' or 'none'")
        self._chosen_pool, self._chosen_least = self.candidate_pool, self.min_generations
        if self.candidate_pool is None:
            self.candidate_pool = default_pool(self.allocation, self.min_generations, self.num_generations)
        self.min_generations = least_rollouts(self.min_generations, self.candidate_pool)
        make_allocator(self.allocation, self.min_generations, self.max_generations)
        self._check_pool()
        if not self.min_generations <= self.num_generations <= self.max_generations:
            raise ValueError(
                f"num_generations ({self.num_generations}) is the average number of rollouts, so it must lie between "
                f"min_generations ({self.min_generations}) and max_generations ({self.max_generations})"
            )
        if self.load_best_model_at_end and self.save_strategy == "steps" and not self._saves_between_blocks():
            raise ValueError(
                f"load_best_model_at_end needs checkpoints exactly every save_steps={self.save_steps}, but only every "
                f"{self.generation_block_steps:g} optimizer steps a generated batch is used up and a resume is exact: "
                "make save_steps a multiple of that"
            )

    @property
    def generation_block_steps(self) -> float:
        """Optimizer steps that one generated batch lasts."""
        return float(self.steps_per_generation * self.num_iterations / self.gradient_accumulation_steps)

    @property
    def wants_hidden_states(self) -> bool:
        """Whether the allocator these fields describe learns from hidden states."""
        return self.allocation == "calibrated" and self.belief_features == "hidden_states"

    def fit_pool(self, most: int) -> None:
        """Lower a pool that nobody asked for to ``most`` batches of candidates; one that was asked for stays."""
        if self._chosen_pool is None and self.pool > most:
            self.candidate_pool = max(most, 1)
            self.min_generations = least_rollouts(self._chosen_least, self.candidate_pool)

    @property
    def pool(self) -> int:
        """``candidate_pool``, which is a number once the fields are checked."""
        assert self.candidate_pool is not None
        return self.candidate_pool

    def make_allocator(self, epoch_steps: int | None, features: Features | None = None) -> KnapsackAllocator:
        """The allocator these fields describe.

        Args:
            epoch_steps: generation steps of an epoch; None where that is not known.
            features: what prompts look like (``calibrated`` alone).
        """
        half_life = self.belief_half_life or float(FADING_PASSES * epoch_steps if epoch_steps else 64)
        least = least_rollouts(self.min_generations, self.pool)
        return make_allocator(self.allocation, least, self.max_generations, half_life, features)

    def _check_pool(self) -> None:
        check_pool(self.pool, self.allocation)
        if self.pool > self.num_generations:
            raise ValueError(
                f"candidate_pool is {self.pool} and num_generations {self.num_generations}: the candidates "
                "share the rows of a group, so there can be at most num_generations"
            )
        if self.pool > 1 and self.min_generations != 0:
            raise ValueError(
                f"min_generations is {self.min_generations} with candidate_pool={self.pool}: a pool is there "
                "to be chosen from, so leave min_generations away, or set it to 0"
            )

    def _saves_between_blocks(self) -> bool:
        # A fraction of the whole run is only known later; the trainer then moves the save point instead.
        return self.save_steps < 1 or (self.save_steps / self.generation_block_steps).is_integer()
