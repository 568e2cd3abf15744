"""Load data sets of prompts: embedded, from reasoning-gym, from a file, or from the hub.

The result is a `datasets.Dataset` with the column ``prompt`` (text, or a list of chat messages), and ``answer`` and
``prompt_id`` if the source has them. Further columns are kept and passed to reward functions.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from knapsack_rl.beliefs.ids import id_text
from knapsack_rl.console.rows import shown
from knapsack_rl.tasks import EMBEDDED, TaskError, parse_settings

if TYPE_CHECKING:
    from datasets import Dataset

    from knapsack_rl.tasks.rewards import Reward

GYM_PREFIX: Final = "reasoning-gym:"
LOADERS: Final = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
# Names that TRL passes to reward functions itself; a column of that name would clash.
RESERVED: Final = ("prompts", "completion", "completions", "completion_ids", "trainer_state")


@dataclass(frozen=True)
class PromptSet:
    """A loaded data set.

    Attributes:
        train: the prompts to train on.
        heldout: prompts for evaluation, with one right answer each; None if the source has none.
        reward: the source's own reward; None if the user must choose one.
    """

    train: Dataset
    heldout: Dataset | None
    reward: Reward | None


def load_prompts(
    source: str,
    *,
    split: str = "train",
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    seed: int = 0,
) -> PromptSet:
    """Load a data set of prompts.

    Args:
        source: ``embedded`` or ``reasoning-gym:NAME``, either with settings (``reasoning-gym:gcd?size=500&seed=1``);
            a ``.jsonl``, ``.json``, ``.parquet`` or ``.csv`` file; or a hub id, ``ID`` or ``ID:CONFIGURATION``.
        split: the split of a hub data set.
        prompt_column, answer_column: names of the columns in a file or hub data set.
        seed: seed of generated prompts.

    Raises:
        TaskError: a source that cannot be loaded or used, in one line.
    """
    name, _, query = source.partition("?")
    if name == EMBEDDED:
        return _embedded(parse_settings(query), seed)
    if source.startswith(GYM_PREFIX):
        return _reasoning_gym(source.removeprefix(GYM_PREFIX), seed)
    dataset = _stored(source, split)
    return PromptSet(uniform_columns(dataset, source, prompt_column, answer_column), None, None)


def uniform_columns(dataset: Dataset, source: str, prompt_column: str, answer_column: str) -> Dataset:
    """Rename the columns of prompts and answers to ``prompt`` and ``answer``; check prompts and ``prompt_id``.

    Raises:
        TaskError: no rows, no such column, an empty prompt, or one id for two prompts.
    """
    if len(dataset) == 0:
        raise TaskError(f"the data set {source} is empty")
    there = ", ".join(dataset.column_names)
    if prompt_column not in dataset.column_names:
        raise TaskError(
            f"{source} has no column {prompt_column!r} to take prompts from (--prompt-column); it has: {there}"
        )
    if answer_column not in dataset.column_names and answer_column != "answer":
        raise TaskError(
            f"{source} has no column {answer_column!r} to take answers from (--answer-column); it has: {there}"
        )
    for wanted, column in (("prompt", prompt_column), ("answer", answer_column)):
        if column != wanted and column in dataset.column_names:
            dataset = dataset.remove_columns([wanted] if wanted in dataset.column_names else [])
            dataset = dataset.rename_column(column, wanted)
    dataset = dataset.remove_columns([column for column in RESERVED if column in dataset.column_names])
    for row, prompt in enumerate(dataset["prompt"]):
        if not prompt and prompt != 0:
            raise TaskError(f"row {row} of {source} has no prompt")
        if not isinstance(prompt, str) and not _is_chat(prompt):
            raise TaskError(
                f"the prompt in row {row} of {source} is {shown(prompt)}: prompts are texts, or lists of messages with "
                "role and content"
            )
    if "prompt_id" not in dataset.column_names:
        return dataset
    ids = _checked_ids(dataset["prompt"], dataset["prompt_id"], source)
    return dataset.remove_columns(["prompt_id"]).add_column("prompt_id", ids)


def as_chat(dataset: Dataset, system_prompt: str | None = None) -> Dataset:
    """Turn text prompts into conversations: the system message, if one is given, and a user message."""
    if not isinstance(dataset[0]["prompt"], str):
        return dataset
    opening = [{"role": "system", "content": system_prompt}] if system_prompt else []
    chats = [[*opening, {"role": "user", "content": prompt}] for prompt in dataset["prompt"]]
    return dataset.remove_columns(["prompt"]).add_column("prompt", chats)


def _checked_ids(prompts: Iterable[Any], given: Iterable[Any], source: str) -> list[str]:
    prompt_of: dict[str, Any] = {}
    ids: list[str] = []
    for row, (prompt, prompt_id) in enumerate(zip(prompts, given, strict=True)):
        try:
            ids.append(id_text(prompt_id))
        except ValueError:
            raise TaskError(f"row {row} of {source} has no prompt_id: give every row one, or drop the column") from None
        if prompt_of.setdefault(ids[row], prompt) != prompt:
            raise TaskError(f"{source} has two prompts with the prompt_id {ids[row]!r} (the second is row {row})")
    return ids


def _is_chat(prompt: object) -> bool:
    return isinstance(prompt, list) and all(
        isinstance(each, dict) and {"role", "content"} <= each.keys() for each in prompt
    )


def _embedded(settings: dict[str, Any], seed: int) -> PromptSet:
    from datasets import Dataset

    from knapsack_rl.tasks import embedded
    from knapsack_rl.tasks.rewards import exact_match

    try:
        train, heldout = embedded.splits(**{"seed": seed, **settings})
    except (TypeError, ValueError) as error:
        raise TaskError(f"the embedded tasks refuse their settings (train, heldout, seed): {error}") from error
    return PromptSet(Dataset.from_list(train), Dataset.from_list(heldout), exact_match)


def _reasoning_gym(specification: str, seed: int) -> PromptSet:
    from datasets import Dataset

    from knapsack_rl.tasks.rewards import reasoning_gym_reward

    if importlib.util.find_spec("reasoning_gym") is None:
        raise TaskError("reasoning-gym tasks need the package: pip install reasoning-gym")
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    name, _, query = specification.partition("?")
    if name not in DATASETS:
        raise TaskError(
            f"reasoning-gym has no task {name!r}; it has, among {len(DATASETS)}: {_similar(name, list(DATASETS))}"
        )
    settings = {"size": 500, "seed": seed, **parse_settings(query)}
    try:
        task = reasoning_gym.create_dataset(name, **settings)
        entries = [task[i] for i in range(len(task))]
    except (AssertionError, TypeError, ValueError) as error:  # raised for a wrong setting
        raise TaskError(f"reasoning-gym refuses the settings of {name!r}: {error}") from error
    ids = [f"{name}-{settings['seed']}-{i}" for i in range(len(entries))]
    rows = [
        {"prompt": entry["question"], "answer": str(entry["answer"]), "prompt_id": row}
        for entry, row in zip(entries, ids, strict=True)
    ]
    if not rows:
        raise TaskError(f"the reasoning-gym task {name!r} is empty")
    reward = reasoning_gym_reward(task.score_answer, entries, ids)
    return PromptSet(Dataset.from_list(rows), None, reward)


def _similar(name: str, names: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, names, n=5, cutoff=0.3) or sorted(names)[:5])


def _stored(source: str, split: str) -> Dataset:
    """Load a data set from a file or from the hub; errors are cut to one line."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs of a damaged file is in the error, too
    path = Path(source).expanduser()
    loader = LOADERS.get(path.suffix.lower())
    if loader and not path.is_file():
        raise TaskError(f"there is no data file {source}")
    if loader:
        _check_readable(path, source, text=loader != "parquet")
    if path.exists() and not loader:
        raise TaskError(f"cannot tell the format of {source}: use one of {', '.join(LOADERS)}")
    try:
        if loader:
            return datasets.load_dataset(loader, data_files=str(path), split="train")
        name, _, configuration = source.partition(":")
        return datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # the library raises many kinds of exceptions
        first: BaseException = error
        while first.__cause__ is not None:  # the library wraps what says where the file is wrong
            first = first.__cause__
        first_line = (str(first).strip() or type(first).__name__).splitlines()[0]
        hint = "" if loader else " (a hub id, a file, 'embedded' or 'reasoning-gym:NAME'?)"
        raise TaskError(f"cannot load the data set {source!r}{hint}: {first_line}") from error


def _check_readable(path: Path, source: str, text: bool) -> None:
    """Refuse an empty file, and one of ``text`` that is not UTF-8, which JSON lines show only when a row is read."""
    if path.stat().st_size == 0:
        raise TaskError(f"cannot load the data set {source!r}: the file is empty")
    if text:
        try:
            with path.open(encoding="utf-8") as file:
                while file.read(1 << 20):
                    pass
        except UnicodeDecodeError as error:
            raise TaskError(f"cannot load the data set {source!r}: not UTF-8 text ({error.reason})") from error
