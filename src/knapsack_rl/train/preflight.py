"""Checks of a job before a folder is made or a model is warmed up: model, data, reward, settings, logger.

What depends on the data is chosen here, written into the job, and said: the reward, and how many prompts a step has.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from knapsack_rl.console.rows import number_in
from knapsack_rl.tasks import EMBEDDED, TaskError
from knapsack_rl.train.job import Job

# Options of the command for fields of the allocation, and the trainer's names of these fields.
ALLOCATION: Final[Mapping[str, str]] = {
    "average": "num_generations",
    "pool": "pool",
    "min": "min_generations",
    "max": "max_generations",
    "min_group": "min_group",
    "half_life": "half_life",
    "success_threshold": "success_threshold",
    "weighting": "group_weighting",
}
# A step of a real model trains on this many prompts, where its batch is not set: TRL's own default is one.
PROMPTS: Final = 16
_BATCH: Final = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size",
)  # fmt: skip


def prepare(job: Job) -> tuple[Job, list[str]]:
    """Check a new job, and complete it.

    Returns:
        The job, with what was chosen for it, and a line for each choice.

    Raises:
        TaskError: a model, data set, reward, setting or logger that cannot be used, in one line.
    """
    _check_model(job)
    _check_loggers(job.trainer.get("report_to"))
    if job.dataset == EMBEDDED and job.tiny and job.reward is None:
        if job.trainer:
            _check_settings(job, None)
        return job, []
    data = _prompts(job)
    job, notes = _with_reward(job, data)
    if not job.tiny:
        job, more = _for_this_machine(_with_batch(job, len(data.train)))
        notes += more
    _check_settings(job, data.train)
    return job, notes


def _check_model(job: Job) -> None:
    from knapsack_rl.tasks.models import check_model

    check_model(job.model)
    if job.tiny and job.system_prompt:
        raise TaskError(f"the tokenizer of {job.model} has no chat template, which a system prompt would need")


def _check_loggers(given: object) -> None:
    """Refuse loggers that are unknown or not installed."""
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else []
    if not set(names) - {"none", "all"}:
        return
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    there = get_available_reporting_integrations()
    for name in names:
        if name in INTEGRATION_TO_CALLBACK and name not in there and name != "flyte":
            raise TaskError(f"--report_to is {name}, which is not installed: pip install {name.replace('_', '-')}")
        if name not in (*INTEGRATION_TO_CALLBACK, "none", "all"):
            raise TaskError(f"--report_to is {name!r}: choose from none, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")


def _prompts(job: Job) -> Any:
    from knapsack_rl.tasks.models import load_tokenizer, model_path
    from knapsack_rl.train.single_run import chat_prompts, job_prompts

    data = job_prompts(job)
    if not job.tiny:
        chat_prompts(data.train.select([0]), load_tokenizer(model_path(job.model)), job)
    return data


def _with_reward(job: Job, data: Any) -> tuple[Job, list[str]]:
    """The job with a reward that fits the data, and what was chosen."""
    from knapsack_rl.tasks.rewards import named_reward

    columns, notes = data.train.column_names, []
    if job.reward is None and data.reward is None:
        if "answer" not in columns:
            raise TaskError(
                f"{job.dataset} has neither a reward of its own nor a column 'answer' to compare with; it has: "
                f"{', '.join(columns)}. Name the column with --answer-column, or set --reward FILE.py:FUNCTION"
            )
        answers = [answer for answer in data.train["answer"] if answer is not None]
        if not answers:
            raise TaskError(f"no row of {job.dataset} has an answer: fill the column, or set --reward FILE.py:FUNCTION")
        name, reason = default_reward(answers)
        notes.append(f"reward: {name} ({reason}); --reward sets another")
        job = dataclasses.replace(job, reward=name)
    if job.reward is not None:
        reward = named_reward(job.reward)
        if job.reward in ("exact", "math"):
            if "answer" not in columns:
                raise TaskError(
                    f"the reward {job.reward!r} needs the column 'answer'; {job.dataset} has: {', '.join(columns)} "
                    "(--answer-column names another)"
                )
        else:
            from knapsack_rl.trl.checks import check_reward_columns

            try:
                check_reward_columns([reward], columns)
            except ValueError as error:
                raise TaskError(str(error)) from error
    return job, notes


def default_reward(answers: Iterable[object]) -> tuple[str, str]:
    """The reward for these answers, and why: ``math`` if all of them are numbers, else ``exact``."""
    if all(map(_is_number, answers)):
        return "math", "every answer is a number, and math-verify compares"
    return "exact", "answers are texts: a completion must equal its answer, apart from white space around it"


def _is_number(answer: object) -> bool:
    """Whether an answer is a finite number, as a value or as text; truth values are none."""
    number = None if isinstance(answer, bool) or str(answer).strip().lower() in ("true", "false") else number_in(answer)
    return number is not None and math.isfinite(number)


def _with_batch(job: Job, prompts: int) -> Job:
    """The job with a batch of `PROMPTS` prompts, or of as many as there are, unless some of it was set."""
    if any(name in job.trainer for name in _BATCH):
        return job
    average = job.trainer.get("num_generations", 8)
    if not isinstance(average, int) or average < 2:
        return job  # refused when the settings are checked
    steps = max(1, min(PROMPTS, prompts) // int(os.environ.get("WORLD_SIZE", "1")))
    batch = {"per_device_train_batch_size": average, "gradient_accumulation_steps": steps}
    return dataclasses.replace(job, trainer={**batch, **job.trainer})


def _for_this_machine(job: Job) -> tuple[Job, list[str]]:
    """The job, on the CPU in 32 bits where there is no accelerator and the user did not choose."""
    import torch

    if torch.accelerator.is_available() or "use_cpu" in job.trainer:
        return job, []
    note = "no GPU was found: training on the CPU, in 32 bits (--steps 2 shows how long a step takes)"
    return dataclasses.replace(job, trainer={"use_cpu": True, "bf16": False, **job.trainer}), [note]


def _check_settings(job: Job, dataset: Any) -> None:
    """Build the trainer's configuration of each rule, so that contradictions show before a run starts."""
    from knapsack_rl.trl.checks import check_size
    from knapsack_rl.trl.config import KnapsackGRPOConfig

    for rule in job.rules:
        try:
            config = KnapsackGRPOConfig(**{**job.trainer_fields(), "output_dir": "unused", "rule": rule})
            if dataset is not None:
                prompts = config.generation_batch_size // config.num_generations
                config.fit_pool(len(dataset) // prompts)
                check_size(dataset, prompts, config.allocation.pool or 1)
        except Exception as error:  # TRL and what is below it raise many kinds for a wrong value (0 divides, too)
            reason = " ".join(str(error).split()) or type(error).__name__
            for option, field in ALLOCATION.items():
                place = "" if field != option else "(?= is |=)"  # a word such as `pool` may be meant as a word
                reason = re.sub(rf"\b{field}\b{place}", f"--{option.replace('_', '-')}", reason)
            raise TaskError(f"the training arguments do not fit the rule {rule}: {reason}") from error
