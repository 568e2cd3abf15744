"""A training job: its settings, its record, its folder, and the checks before a resume. Imports no framework."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Final

from knapsack_rl.config import RULES
from knapsack_rl.files import parse_json, replacing
from knapsack_rl.tasks import EMBEDDED, TaskError
from knapsack_rl.tasks.embedded import MAX_ANSWER_TOKENS
from knapsack_rl.trace import TRACE_NAME

DEFAULT_OUTPUT: Final = Path("runs/train")
RECORD: Final = "run.json"
VERSION: Final = 1
# Exit status of a run's process; any other is a failure.
FINISHED: Final = 0
REFUSED: Final = 2
INTERRUPTED: Final = 3
# The embedded job: 32 prompts x 8 rollouts a step on average; it learns without collapsing (docs/log.md).
EMBEDDED_STEPS: Final = 180
EMBEDDED_TRAINER: Final[Mapping[str, Any]] = {
    "per_device_train_batch_size": 256,
    "num_generations": 8,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "max_completion_length": MAX_ANSWER_TOKENS,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_steps": 25,
    "logging_steps": 10,
}


@dataclass(frozen=True)
class Job:
    """The settings of a job; equal jobs make equal runs.

    Attributes:
        model, dataset: names, as in `knapsack_rl.tasks.models` and `knapsack_rl.tasks.prompts`.
        dataset_split, prompt_column, answer_column: split and columns of the data set.
        system_prompt: first message of every conversation.
        reward: name of the reward; None uses the data set's own.
        rules: rules to train with, one run each.
        seed: of the data, the order and the samples.
        steps: optimizer steps; None leaves the length to the trainer's settings.
        trainer: fields of the trainer's configuration that were given; they replace the job's defaults.
    """

    model: str = EMBEDDED
    dataset: str = EMBEDDED
    dataset_split: str = "train"
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    system_prompt: str | None = None
    reward: str | None = None
    rules: tuple[str, ...] = ("uniform", "calibrated")
    seed: int = 0
    steps: int | None = EMBEDDED_STEPS
    trainer: dict[str, Any] = field(default_factory=dict)

    @property
    def tiny(self) -> bool:
        """Whether the model is the embedded one, so that one core is enough for a run."""
        return _kind(self.model) == EMBEDDED

    def trainer_fields(self) -> dict[str, Any]:
        """The fields of the trainer's configuration that the job sets, by TRL's names."""
        common = {"report_to": "none", "disable_tqdm": True, "save_total_limit": 1, "logging_steps": 1}
        length = {} if self.steps is None else {"max_steps": self.steps}
        return {**common, **(EMBEDDED_TRAINER if self.tiny else {}), **length, "seed": self.seed, **self.trainer}

    def save(self, folder: Path) -> None:
        """Write the record of the job into its folder, all or nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": VERSION, "job": asdict(self)}, indent=2) + "\n"
        with replacing(folder / RECORD) as file:
            file.write(text.encode())

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Load the job recorded in a folder.

        Raises:
            TaskError: no record, a damaged one, or one of another version.
        """
        path = folder / RECORD
        try:
            record = parse_json(path.read_bytes())
            if record.get("version", VERSION) == VERSION:
                return cls(**{**record["job"], "rules": tuple(record["job"]["rules"])})
        except FileNotFoundError:
            raise TaskError(f"{folder} holds no training job to resume: {path} is missing") from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise TaskError(
                f"cannot read the recorded job {path} ({error}): restore it, or start a new run in another --output"
            ) from error
        raise TaskError(
            f"{path} has version {record['version']!r}, and this release reads {VERSION}: resume with the release that "
            "began the job"
        )


def new_job(given: Mapping[str, Any], trainer: dict[str, Any]) -> Job:
    """Make a job from options; defaults depend on the model.

    Args:
        given: options that the user set, by field name of `Job`.
        trainer: fields of the trainer's configuration that the user set.

    Raises:
        TaskError: an unknown rule, or a real model without a data set.
    """
    settings = dict(given)
    embedded = _kind(settings.get("model", EMBEDDED)) == EMBEDDED
    if not embedded:
        if "dataset" not in settings:
            raise TaskError(f"--model {settings['model']} needs --dataset: a hub id, a file, or reasoning-gym:NAME")
        settings.setdefault("rules", ("calibrated",))
        settings.setdefault("steps", None)
    rules = settings.get("rules", Job.rules)
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown or not rules:
        raise TaskError(f"--rules takes a list of {', '.join(RULES)}; unknown: {', '.join(unknown) or 'none given'}")
    return Job(**settings, trainer=trainer)


def check_same(recorded: Job, given: Mapping[str, Any], trainer: Mapping[str, Any], folder: Path) -> None:
    """Refuse to resume a run with other settings.

    Raises:
        TaskError: a setting that differs; the message names the first.
    """
    for name, value in given.items():
        before = getattr(recorded, name)
        if before != value:
            raise _differs(folder, name, before, value)
    for name, value in trainer.items():
        if name not in recorded.trainer or recorded.trainer[name] != value:
            raise _differs(folder, name, recorded.trainer_fields().get(name, "TRL's default"), value)


def free_output(asked: Path | None) -> Path:
    """The folder of a new job: the given one, or the first free one of ``runs/train``, ``runs/train-2``, ...

    Raises:
        TaskError: the given folder is in use.
    """
    if asked is not None:
        if not _is_free(asked):
            raise TaskError(f"{asked} is not empty: choose another --output, or resume the run in it with --resume")
        return asked
    return next(folder for folder in _numbered() if _is_free(folder))


def resumable_output(asked: Path | None) -> Path:
    """The folder to resume: the given one, else the latest default one.

    Raises:
        TaskError: no default folder exists.
    """
    if asked is not None:
        return asked
    taken = list(takewhile(Path.exists, _numbered()))
    if not taken:
        raise TaskError(f"there is no run to resume in {DEFAULT_OUTPUT.parent}: name its folder with --output")
    return taken[-1]


def quiet_frameworks() -> None:
    """Turn off progress bars and notices of the frameworks, for this process and those that it starts.

    Call it before transformers is imported.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # TRL uses names that transformers deprecates.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _kind(model: str) -> str:
    return model.partition("?")[0]


def _numbered() -> Iterator[Path]:
    yield DEFAULT_OUTPUT
    yield from (DEFAULT_OUTPUT.with_name(f"{DEFAULT_OUTPUT.name}-{number}") for number in count(2))


def _is_free(folder: Path) -> bool:
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    # A job that failed before its first step left its record and logs only.
    ours = (folder / RECORD).is_file()
    started = any(b'"kind":"step"' in trace.read_bytes() for trace in folder.glob(f"*/{TRACE_NAME}"))
    return not any(folder.iterdir()) or (ours and not started)


def _differs(folder: Path, name: str, before: object, now: object) -> TaskError:
    return TaskError(
        f"cannot resume {folder} with another {name}: it was started with {before!r}, and now given {now!r}; "
        "leave the option out, or start a new run in another --output"
    )
