"""One training run in one process: from a recorded job and a rule to a trace, checkpoints and a model.

`knapsack_rl.train.launch` starts it as ``python -m knapsack_rl.train.single_run FOLDER RULE``; under ``torchrun`` every
process runs it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import TrainerCallback

from knapsack_rl.tasks import TaskError
from knapsack_rl.tasks.models import load_tokenizer, model_path
from knapsack_rl.tasks.prompts import PromptSet, as_chat, load_prompts
from knapsack_rl.tasks.rewards import named_reward
from knapsack_rl.tasks.tiny_model import exact_success_rates
from knapsack_rl.trace import TRACE_NAME
from knapsack_rl.train.job import FINISHED, INTERRUPTED, REFUSED, Job, quiet_frameworks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from knapsack_rl.trl.trainer import KnapsackGRPOTrainer

RESUME_FLAG: Final = "--resume"
FINAL_MODEL: Final = "model"
# Evaluations of a run, beside that before its first step.
EVALUATIONS: Final = 15
_ERROR: Final = "error: "


def train(job: Job, rule: str, folder: Path, stop: StopRequest, resume: bool) -> int:
    """Train with one rule in this process.

    Args:
        job: the settings.
        rule: the rule that chooses counts.
        folder: folder of the trace, the checkpoints and the final model.
        stop: checked after every generated batch.
        resume: continue from the last checkpoint, if there is one.

    Returns:
        ``FINISHED`` or ``INTERRUPTED``.

    Raises:
        TaskError: a model, data set, reward or setting that cannot be used.
    """
    trainer = build_trainer(job, rule, folder)
    trainer.add_callback(StopCallback(trainer, stop))
    checkpoint = last_checkpoint(folder) if resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < trainer.state.max_steps:
        return INTERRUPTED
    trainer.save_model(str(folder / FINAL_MODEL))
    return FINISHED


def job_prompts(job: Job) -> PromptSet:
    """The prompts that a job names.

    Raises:
        TaskError: a data set that cannot be used.
    """
    return load_prompts(
        job.dataset,
        split=job.dataset_split,
        prompt_column=job.prompt_column,
        answer_column=job.answer_column,
        seed=job.seed,
    )


def build_trainer(job: Job, rule: str, folder: Path) -> KnapsackGRPOTrainer:
    """Make the trainer of one run; for embedded tasks, with exact evaluation.

    Raises:
        TaskError: a model, data set, reward or setting that cannot be used.
    """
    from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackGRPOTrainer

    path = model_path(job.model)
    tokenizer = load_tokenizer(path)
    prompts = job_prompts(job)
    reward = named_reward(job.reward) if job.reward else prompts.reward
    if reward is None:
        raise TaskError(f"{job.dataset} has no reward of its own: set --reward exact, math, or FILE.py:FUNCTION")
    fields = {**job.trainer_fields(), "output_dir": str(folder), "trace_file": TRACE_NAME, "rule": rule}
    try:
        trainer = KnapsackGRPOTrainer(
            model=path,
            reward_funcs=reward,
            args=KnapsackGRPOConfig(**fields),
            train_dataset=chat_prompts(prompts.train, tokenizer, job),
            processing_class=tokenizer,
        )
    except (ValueError, OSError) as error:  # settings refused by TRL or by this library
        raise TaskError(" ".join(str(error).split())) from error
    if prompts.heldout is not None and spells_characters(tokenizer):
        every = max(1, (job.steps or trainer.args.max_steps) // EVALUATIONS)
        rows = prompts.train.to_list(), prompts.heldout.to_list()
        trainer.add_callback(ExactEvaluation(trainer, tokenizer, *rows, every))
    return trainer


def chat_prompts(dataset: Any, tokenizer: PreTrainedTokenizerBase, job: Job) -> Any:
    """Convert prompts to conversations if the tokenizer has a chat template; else they stay plain texts.

    Raises:
        TaskError: conversations or a system prompt for a tokenizer without a template.
    """
    if tokenizer.chat_template is not None:
        return as_chat(dataset, job.system_prompt)
    if job.system_prompt or not isinstance(dataset[0]["prompt"], str):
        what = "a system prompt" if job.system_prompt else f"the conversations of {job.dataset}"
        raise TaskError(f"the tokenizer of {job.model} has no chat template, which {what} would need")
    return dataset


def spells_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has one token per character, so that an answer has one tokenization and rates are exact."""
    text = "abc123"
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) == len(text)


def last_checkpoint(folder: Path) -> str | None:
    """The latest complete checkpoint; None if there is none."""
    complete = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None


class StopRequest:
    """A request to end the run: SIGINT, SIGTERM, or the end of the parent process."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        """Whether a stop was requested, in this process or (with several) in any of them."""
        requested = self._event.is_set()
        if not torch.distributed.is_initialized():
            return requested
        # Signals reach processes at different times, and all must stop after the same step.
        anywhere = torch.tensor(int(requested), device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
        torch.distributed.all_reduce(anywhere, op=torch.distributed.ReduceOp.MAX)
        return bool(anywhere.item())

    def listen(self, *, parent: bool = False) -> None:
        """Handle signals from now on; with ``parent``, also the end of standard input: the parent has ended."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._event.set())
        if parent:
            threading.Thread(target=self._wait_for_end_of_input, daemon=True).start()

    def _wait_for_end_of_input(self) -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        self._event.set()


class StopCallback(TrainerCallback):  # type: ignore[misc]  # transformers is Any to the checker
    """Ends training after the current generated batch, with a checkpoint."""

    def __init__(self, trainer: KnapsackGRPOTrainer, stop: StopRequest) -> None:
        """A callback of ``trainer`` that checks ``stop``."""
        self.trainer, self.stop = trainer, stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where a resume is exact, unless this is the last step."""
        if self.trainer.between_batches and state.global_step < state.max_steps and self.stop():
            control.should_save = control.should_training_stop = True


class ExactEvaluation(TrainerCallback):  # type: ignore[misc]  # transformers is Any to the checker
    """Records exact success rates of training and held-out prompts: before, during and at the end of training."""

    def __init__(
        self,
        trainer: KnapsackGRPOTrainer,
        tokenizer: PreTrainedTokenizerBase,
        train: Sequence[Mapping[str, str]],
        heldout: Sequence[Mapping[str, str]],
        every: int,
    ) -> None:
        """Evaluate ``trainer``'s model every ``every`` optimizer steps, into its trace."""
        self.trainer, self.tokenizer = trainer, tokenizer
        self.train, self.heldout, self.every = train, heldout, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the initial model; a resumed run has this evaluation already."""
        if state.global_step == 0:
            self._evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate at intervals and at the end."""
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


def main(argv: list[str]) -> int:
    """Train with the rule that the command line names."""
    folder, rule = Path(argv[0]), argv[1]
    stop = StopRequest()
    stop.listen(parent=True)
    quiet_frameworks()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        return train(Job.load(folder), rule, folder / rule, stop, RESUME_FLAG in argv)
    except TaskError as error:
        print(f"{_ERROR}{error}", file=sys.stderr, flush=True)
        return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
