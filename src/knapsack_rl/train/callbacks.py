"""What the main job adds to TRL's loop: exact evaluations, and a stop between two generated batches."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from knapsack_rl.tasks.tiny_model import exact_success_rates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from knapsack_rl.trl.trainer import KnapsackGRPOTrainer


class StopRequest:
    """Whether somebody wants the run to end: SIGINT, SIGTERM, or the parent process being gone."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        """True once a stop was asked for, by this or (with several processes) by any process."""
        asked = self._event.is_set()
        if not torch.distributed.is_initialized():
            return asked
        # Signals reach processes at different moments; they must all stop after the same step.
        anywhere = torch.tensor(int(asked), device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
        torch.distributed.all_reduce(anywhere, op=torch.distributed.ReduceOp.MAX)
        return bool(anywhere.item())

    def listen(self, *, parent: bool = False) -> None:
        """Take signals from now on; with ``parent``, also an end of standard input: the parent has died."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._event.set())
        if parent:
            threading.Thread(target=self._wait_for_end_of_input, daemon=True).start()

    def _wait_for_end_of_input(self) -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        self._event.set()


class StopCallback(TrainerCallback):  # type: ignore[misc]  # transformers is Any to the checker
    """Ends training after the current generated batch, with a checkpoint to go on from."""

    def __init__(self, trainer: KnapsackGRPOTrainer, stop: StopRequest) -> None:
        """A callback of ``trainer`` that obeys ``stop``."""
        self.trainer, self.stop = trainer, stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where a resume is exact; the last step ends by itself."""
        if self.trainer.between_batches and state.global_step < state.max_steps and self.stop():
            control.should_save = control.should_training_stop = True


class ExactEvaluation(TrainerCallback):  # type: ignore[misc]  # transformers is Any to the checker
    """Reads off exact success rates on training and held-out prompts, before training, as it goes, and at its end."""

    def __init__(
        self,
        trainer: KnapsackGRPOTrainer,
        tokenizer: PreTrainedTokenizerBase,
        train: Sequence[Mapping[str, str]],
        heldout: Sequence[Mapping[str, str]],
        every: int,
    ) -> None:
        """Evaluate ``trainer``'s model every so many optimizer steps, into its trace."""
        self.trainer, self.tokenizer = trainer, tokenizer
        self.train, self.heldout, self.every = train, heldout, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The starting point; a resumed run has it already."""
        if state.global_step == 0:
            self._evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The curve and its end. An interrupted run measures later: its last point would be superseded anyway."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._evaluate()

    def _evaluate(self) -> None:
        trace = self.trainer.trace
        if trace is None:
            return  # not the main process
        train = exact_success_rates(self.trainer.model, self.tokenizer, self.train)
        heldout = exact_success_rates(self.trainer.model, self.tokenizer, self.heldout)
        steps = self.trainer.generation_step
        trace.evaluation(
            steps,
            steps * self.trainer.args.generation_batch_size,
            {"train/pass_rate": float(train.mean()), "heldout/pass_rate": float(heldout.mean())},
            {row["prompt_id"]: float(rate) for row, rate in zip(self.train, train, strict=True)},
        )
