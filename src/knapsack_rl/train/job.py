"""What a training job is, apart from any framework: its settings, its folder, and what both must agree on to go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from knapsack_rl.files import replacing
from knapsack_rl.tasks.errors import TaskError

EMBEDDED: Final = "embedded"
DEFAULT_OUTPUT: Final = Path("runs/train")
RECORD: Final = "run.json"
TRACE: Final = "trace.jsonl"
# What each arm is to the trainer; names as people say them.
ALLOCATIONS: Final = {"uniform": "uniform", "knapsack": "calibrated", "paper": "paper"}
# How an arm ended, as its process's exit status; any other is a failure.
FINISHED: Final = 0
REFUSED: Final = 2
INTERRUPTED: Final = 3
# The embedded job: 32 prompts x 8 rollouts on average a step, found to learn without collapsing (docs/log.md).
EMBEDDED_STEPS: Final = 180
EMBEDDED_TRAINER: Final[Mapping[str, Any]] = {
    "per_device_train_batch_size": 256,
    "num_generations": 8,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 8,
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
    """Everything that decides a run; two jobs that are equal make equal runs.

    Attributes:
        model, dataset: as `knapsack_rl.tasks` reads them.
        dataset_split, prompt_column, answer_column: where a data set keeps its prompts.
        system_prompt: put before every prompt of a conversational model.
        reward: name of the reward; None takes the data set's own.
        arms: names of the runs to make, keys of ``ALLOCATIONS``.
        seed: of the data, the sampling and the order.
        steps: optimizer steps; None leaves the length to the trainer's own settings.
        trainer: fields of the trainer's configuration that were given, over the job's defaults.
    """

    model: str = EMBEDDED
    dataset: str = EMBEDDED
    dataset_split: str = "train"
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    system_prompt: str | None = None
    reward: str | None = None
    arms: tuple[str, ...] = ("uniform", "knapsack")
    seed: int = 0
    steps: int | None = EMBEDDED_STEPS
    trainer: dict[str, Any] = field(default_factory=dict)

    @property
    def tiny(self) -> bool:
        """Whether the model is the embedded one, so that one core is enough for an arm."""
        return _kind(self.model) == EMBEDDED

    def trainer_fields(self) -> dict[str, Any]:
        """The trainer's configuration as the job wants it, in TRL's names."""
        common = {"report_to": "none", "disable_tqdm": True, "save_total_limit": 1, "logging_steps": 1}
        length = {} if self.steps is None else {"max_steps": self.steps}
        return {**common, **(EMBEDDED_TRAINER if self.tiny else {}), **length, "seed": self.seed, **self.trainer}

    def save(self, folder: Path) -> None:
        """Record the job in its folder, all or nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": 1, "job": asdict(self)}, indent=2) + "\n"
        with replacing(folder / RECORD) as file:
            file.write(text.encode())

    @classmethod
    def load(cls, folder: Path) -> Job:
        """The job recorded in a folder.

        Raises:
            TaskError: no record, or one that this version cannot read.
        """
        path = folder / RECORD
        try:
            recorded = json.loads(path.read_text())["job"]
            return cls(**{**recorded, "arms": tuple(recorded["arms"])})
        except FileNotFoundError:
            raise TaskError(f"{folder} holds no training job to go on with: {path} is missing") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise TaskError(f"cannot read the recorded job {path}: {error}") from error


def new_job(given: Mapping[str, Any], trainer: dict[str, Any]) -> Job:
    """The job that the given options describe; what was not given takes the defaults that suit the model and the data.

    Args:
        given: options by field name of `Job`, only those that the user set.
        trainer: fields of the trainer's configuration that the user set.

    Raises:
        TaskError: an unknown arm, or a real model without data.
    """
    settings = dict(given)
    embedded = _kind(settings.get("model", EMBEDDED)) == EMBEDDED
    if not embedded:
        if "dataset" not in settings:
            raise TaskError(f"--model {settings['model']} needs --dataset: a hub id, a file, or reasoning-gym:NAME")
        settings.setdefault("arms", ("knapsack",))
        settings.setdefault("steps", None)
    unknown = [arm for arm in settings.get("arms", ()) if arm not in ALLOCATIONS]
    if unknown or not settings.get("arms", ("",)):
        raise TaskError(
            f"--arms must be a list of {', '.join(ALLOCATIONS)}; unknown: {', '.join(unknown) or 'none given'}"
        )
    return Job(**settings, trainer=trainer)


def check_same(recorded: Job, given: Mapping[str, Any], trainer: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other settings than a run was started with.

    Raises:
        TaskError: naming the first setting that differs.
    """
    for name, value in given.items():
        before = getattr(recorded, name)
        if before != value:
            raise _differs(folder, name, before, value)
    for name, value in trainer.items():
        if name not in recorded.trainer or recorded.trainer[name] != value:
            raise _differs(folder, name, recorded.trainer_fields().get(name, "TRL's default"), value)


def free_output(asked: Path | None) -> Path:
    """The folder of a new run: the one asked for if it is free, else the first free one of ``runs/train``, ``-2``, ...

    Raises:
        TaskError: the folder asked for is taken.
    """
    if asked is not None:
        if not _is_free(asked):
            raise TaskError(f"{asked} is not empty: choose another --output, or go on with the run there by --resume")
        return asked
    return next(folder for folder in _numbered() if _is_free(folder))


def resumable_output(asked: Path | None) -> Path:
    """The folder to go on with: the one asked for, else the latest default one.

    Raises:
        TaskError: there is none.
    """
    if asked is not None:
        return asked
    taken = []
    for folder in _numbered():
        if not folder.exists():
            break
        taken.append(folder)
    if not taken:
        raise TaskError(f"there is no run to resume under {DEFAULT_OUTPUT.parent}: say which with --output")
    return taken[-1]


def _kind(model: str) -> str:
    return model.partition("?")[0]


def _numbered() -> Iterator[Path]:
    yield DEFAULT_OUTPUT
    number = 2
    while True:
        yield DEFAULT_OUTPUT.with_name(f"{DEFAULT_OUTPUT.name}-{number}")
        number += 1


def _is_free(folder: Path) -> bool:
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    # A job that failed before its first rollout leaves its record and logs: nothing that anybody would miss.
    ours = (folder / RECORD).is_file()
    started = any(b'"kind":"step"' in trace.read_bytes() for trace in folder.glob(f"*/{TRACE}"))
    return not any(folder.iterdir()) or (ours and not started)


def _differs(folder: Path, name: str, before: object, now: object) -> TaskError:
    return TaskError(
        f"cannot resume {folder} with another {name}: it was started with {before!r}, now it is {now!r}; "
        "leave the option out, or start a new run in another --output"
    )
