"""What has to happen at moments of the training loop that only callbacks see."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from knapsack_rl.trl.trainer import KnapsackMixin

logger = logging.getLogger(__name__)


class KnapsackCallback(TrainerCallback):  # type: ignore[misc]  # transformers is Any to the checker
    """Opens and ends the trace, sets the sampler's epoch, and moves save points to where a resume is exact."""

    def __init__(self, trainer: KnapsackMixin) -> None:
        """A callback of ``trainer``."""
        self.trainer = trainer
        self._save_due = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The trace is opened here, when it is known whether the run resumes."""
        self.trainer.open_trace()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the order of the epoch.

        Not by ``set_epoch``: accelerate forwards that through two wrappers only, and a resumed run of several processes
        has three.
        """
        self.trainer.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put off a save until the generated batch is used up: what is left of it is not part of a checkpoint."""
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
                args.generation_block_steps,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say in the trace how the run ended."""
        if self.trainer.trace is not None:
            self.trainer.trace.end("finished" if state.global_step >= state.max_steps else "interrupted")
