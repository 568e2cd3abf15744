"""One arm: one training run in one process, from a recorded job to a trace, checkpoints and a model.

The main job starts it as ``python -m knapsack_rl.train.arm FOLDER ARM``; under ``torchrun`` it runs in every process.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from knapsack_rl.tasks.errors import TaskError
from knapsack_rl.train.callbacks import ExactEvaluation, StopCallback, StopRequest
from knapsack_rl.train.job import ALLOCATIONS, FINISHED, INTERRUPTED, REFUSED, TRACE, Job
from knapsack_rl.train.quiet import quiet_frameworks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from knapsack_rl.tasks.prompts import PromptSet
    from knapsack_rl.trl.trainer import KnapsackGRPOTrainer

RESUME_FLAG: Final = "--resume"
FINAL_MODEL: Final = "model"
EVALUATIONS: Final = 15
_ERROR: Final = "error: "


def run_arm(job: Job, name: str, folder: Path, stop: StopRequest, resume: bool) -> int:
    """Train one arm in this process.

    Args:
        job: what to train on what.
        name: the arm, a key of ``ALLOCATIONS``.
        folder: where its trace, checkpoints and final model go.
        stop: asked after every generated batch.
        resume: go on from the last checkpoint, where there is one.

    Returns:
        ``FINISHED`` or ``INTERRUPTED``.

    Raises:
        TaskError: a model, data set, reward or setting that cannot be used.
    """
    trainer = build_trainer(job, name, folder)
    trainer.add_callback(StopCallback(trainer, stop))
    checkpoint = last_checkpoint(folder) if resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < trainer.state.max_steps:
        return INTERRUPTED
    trainer.save_model(str(folder / FINAL_MODEL))
    return FINISHED


def build_trainer(job: Job, name: str, folder: Path) -> KnapsackGRPOTrainer:
    """The trainer of one arm, ready to train; embedded tasks come with their exact evaluation.

    Raises:
        TaskError: a model, data set, reward or setting that cannot be used.
    """
    from knapsack_rl.tasks.models import load_tokenizer, model_path
    from knapsack_rl.tasks.rewards import named_reward
    from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackGRPOTrainer

    path = model_path(job.model)
    tokenizer = load_tokenizer(path)
    prompts = job_prompts(job)
    reward = named_reward(job.reward) if job.reward else prompts.reward
    if reward is None:
        raise TaskError(f"say how to score answers to {job.dataset}: --reward exact, math, or FILE.py:FUNCTION")
    fields = {**job.trainer_fields(), "output_dir": str(folder), "trace_file": TRACE, "allocation": ALLOCATIONS[name]}
    try:
        trainer = KnapsackGRPOTrainer(
            model=path,
            reward_funcs=reward,
            args=KnapsackGRPOConfig(**fields),
            train_dataset=chat_prompts(prompts.train, tokenizer, job),
            processing_class=tokenizer,
        )
    except (ValueError, OSError) as error:  # the library's and TRL's own words about what does not fit
        raise TaskError(" ".join(str(error).split())) from error
    if prompts.heldout is not None and spells_characters(tokenizer):
        every = max(1, (job.steps or trainer.args.max_steps) // EVALUATIONS)
        trainer.add_callback(
            ExactEvaluation(trainer, tokenizer, prompts.train.to_list(), prompts.heldout.to_list(), every)
        )
    return trainer


def job_prompts(job: Job) -> PromptSet:
    """The job's data set."""
    from knapsack_rl.tasks.prompts import load_prompts

    return load_prompts(
        job.dataset,
        split=job.dataset_split,
        prompt_column=job.prompt_column,
        answer_column=job.answer_column,
        seed=job.seed,
    )


def chat_prompts(dataset: Any, tokenizer: PreTrainedTokenizerBase, job: Job) -> Any:
    """Prompts as the model wants them: conversations if its tokenizer has a chat template, plain texts if not.

    Raises:
        TaskError: conversations or a system prompt for a model that has no template for them.
    """
    from knapsack_rl.tasks.prompts import as_chat

    if tokenizer.chat_template is not None:
        return as_chat(dataset, job.system_prompt)
    if job.system_prompt or not isinstance(dataset[0]["prompt"], str):
        what = "a system prompt" if job.system_prompt else f"the conversations of {job.dataset}"
        raise TaskError(f"the tokenizer of {job.model} has no chat template, which {what} would need")
    return dataset


def spells_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every text has one tokenization, character by character: only then is teacher forcing the exact rate."""
    text = "abc123"
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) == len(text)


def last_checkpoint(folder: Path) -> str | None:
    """The latest checkpoint that was written to its end; None if there is none."""
    complete = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None


def main(argv: list[str]) -> int:
    """Run the arm that the command line names, as the main job's subprocess."""
    folder, name = Path(argv[0]), argv[1]
    stop = StopRequest()
    stop.listen(parent=True)
    quiet_frameworks()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        return run_arm(Job.load(folder), name, folder / name, stop, RESUME_FLAG in argv)
    except TaskError as error:
        print(f"{_ERROR}{error}", file=sys.stderr, flush=True)
        return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
