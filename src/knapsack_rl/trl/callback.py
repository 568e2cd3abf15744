"""Handle the events of the training loop that only callbacks receive: begin, epoch, step and end."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from transformers import TrainerCallback

from knapsack_rl.trace import TraceWriter

logger = logging.getLogger(__name__)


def block_steps(args: Any) -> float:
    """Optimizer steps per generated batch, by the arguments of TRL's trainer or one that has the same."""
    return float(args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps)


class _Trainer(Protocol):
    """The members of the trainer that the callback uses."""

    @property
    def trace(self) -> TraceWriter | None: ...
    @property
    def between_batches(self) -> bool: ...
    def begin_training(self) -> None: ...
    def set_epoch(self, epoch: int) -> None: ...


class KnapsackCallback(TrainerCallback):  # type: ignore[misc]  # transformers is Any to the checker
    """Open and end the trace, set the sampler's epoch, and delay checkpoints to steps from which a resume is exact."""

    def __init__(self, trainer: _Trainer) -> None:
        """Create the callback of ``trainer``."""
        self.trainer = trainer
        self._save_due = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a run or, after a checkpoint was loaded, continue it."""
        self._save_due = False
        self.trainer.begin_training()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch of the sampler.

        Done here because accelerate forwards ``set_epoch`` through two wrappers only, and a resumed run of several
        processes has three.
        """
        self.trainer.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Delay a checkpoint until the generated batch is used up, because checkpoints do not hold its unused rest."""
        last = control.should_training_stop or state.global_step >= state.max_steps
        if self.trainer.between_batches:
            control.should_save |= self._save_due
            self._save_due = False
        elif control.should_save and not last:
            control.should_save, self._save_due = False, True
            logger.warning(
                "the checkpoint of step %d is moved to the end of the generated batch (every %g steps), from where a "
                "run can be resumed exactly: make save_steps a multiple of that",
                state.global_step,
                block_steps(args),
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record in the trace how the run ended."""
        if self.trainer.trace is not None:
            self.trainer.trace.end("finished" if state.global_step >= state.max_steps else "interrupted")
