"""TRL's configuration plus ours, in TRL's dialect: ``num_generations`` stays the *average* number of rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from knapsack_rl.allocator import KnapsackAllocator, make_allocator
from knapsack_rl.beliefs import FADING_PASSES
from trl import GRPOConfig


@dataclass
class KnapsackGRPOConfig(GRPOConfig):  # type: ignore[misc]  # TRL ships no types
    """`trl.GRPOConfig` with the fields of the allocation; all of TRL's fields mean what they meant.

    Raises:
        ValueError: limits that cannot be met by an average of ``num_generations``, or a save schedule that the best
            model cannot be loaded from.
    """

    allocation: Literal["posterior", "paper", "uniform"] = field(
        default="posterior",
        metadata={
            "help": "How counts are chosen: 'posterior' (Beta beliefs with forgetting, expected value), 'paper' (the "
            "authors' estimator and rules) or 'uniform' (stock GRPO, with beliefs and trace)."
        },
    )
    min_generations: int = field(
        default=2, metadata={"help": "Least rollouts of a prompt: at least 2, or 0 to let prompts be left out."}
    )
    max_generations: int = field(default=128, metadata={"help": "Most rollouts of a prompt."})
    success_threshold: float = field(
        default=1.0, metadata={"help": "Least (weighted) reward that counts as a success for the beliefs."}
    )
    group_weighting: Literal["rollout", "prompt"] = field(
        default="rollout",
        metadata={
            "help": "'rollout': a prompt weighs in the loss by its number of rollouts (the paper's code); 'prompt': "
            "advantages are scaled so that every prompt weighs the same."
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
        if self.group_weighting not in ("rollout", "prompt"):
            raise ValueError(f"group_weighting is {self.group_weighting!r}: choose 'rollout' or 'prompt'")
        if self.belief_half_life is not None and not self.belief_half_life > 0:
            raise ValueError(f"belief_half_life is {self.belief_half_life}: it must be positive, or None for 4 passes")
        make_allocator(self.allocation, self.min_generations, self.max_generations)
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

    def make_allocator(self, epoch_steps: int | None) -> KnapsackAllocator:
        """The allocator these fields describe; ``epoch_steps`` is one pass over the data in generation steps."""
        half_life = self.belief_half_life or float(FADING_PASSES * epoch_steps if epoch_steps else 64)
        return make_allocator(self.allocation, self.min_generations, self.max_generations, half_life)

    def _saves_between_blocks(self) -> bool:
        # A fraction of the whole run is only known later; the trainer then moves the save point instead.
        return self.save_steps < 1 or (self.save_steps / self.generation_block_steps).is_integer()
