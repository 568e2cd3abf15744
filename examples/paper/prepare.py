"""Write what both trainers and the evaluation read: DAPO-Math-17k, and the benchmarks of the paper.

    python prepare.py DATA                      # from the hub; GPQA asks for a login: hf auth login
    python prepare.py DATA --from FOLDER        # from FOLDER/NAME.jsonl, .json, .parquet or .csv, of the same columns

``DATA/parquet/NAME.parquet`` has verl's columns. ``DATA/jsonl/NAME.jsonl``, for TRL and the evaluation, has ``prompt``,
``answer`` and ``prompt_id``. The id is a hash of the question, so it is the same in every run, order and file format.
Needs knapsack-rl[trl] and math-verify; needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from knapsack_rl.beliefs.ids import content_id
from knapsack_rl.tasks import TaskError
from knapsack_rl.tasks.prompts import LOADERS
from knapsack_rl.tasks.rewards import named_reward

TRAINING: Final = "dapo-math-17k"
# Qwen2.5-Math's own instruction. DAPO-Math-17k asks for a last line "Answer: ..." instead, which math-verify reads only
# if the answer is a number or stands between dollar signs; so its two sentences are replaced by this one.
INSTRUCTION: Final = "Please reason step by step, and put your final answer within \\boxed{}."
CHOOSE: Final = "Please reason step by step, and put the letter of the right choice within \\boxed{}."
DAPO_BEGINS: Final = "Solve the following math problem step by step. The last line of your response should be"
DAPO_ENDS: Final = 'Remember to put your answer on its own line after "Answer:".'


@dataclass(frozen=True)
class Source:
    """A data set on the hub, and its columns that are read.

    Attributes:
        hub: its name on the hub.
        split: the split that is read.
        question, answer: columns of the question and of the right answer.
        configuration: the configuration, if there are several.
        wrong: columns of the wrong choices, in a data set of choices.
        context: a column of text that stands before the question, where a row has one.
    """

    hub: str
    split: str
    question: str
    answer: str
    configuration: str | None = None
    wrong: tuple[str, ...] = ()
    context: str | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return (self.question, self.answer, *self.wrong)


# Read on 2026-11-27, without access to the hub: in stored copies of the cards of AIME 2024 and Minerva, and of copies
# of three others (LuyiCui/DAPO-Math-17k, and open-r1/DAPO-Math-17k-Processed's create_dataset.py; macabdul9/MATH-500;
# teddyyyy123/ssss for GPQA); for math-ai/aime25, amc23 and olympiadbench in public code that loads them. This script
# has loaded none of them. Rows to expect: 1.79 million (17,398 texts), 30, 30, 40, 500, 272, about 675, 198.
SOURCES: Final[Mapping[str, Source]] = {
    TRAINING: Source("BytedTsinghua-SIA/DAPO-Math-17k", "train", "prompt", "reward_model"),
    "aime-2024": Source("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    "aime-2025": Source("math-ai/aime25", "test", "problem", "answer"),
    "amc-2023": Source("math-ai/amc23", "test", "question", "answer"),
    "math-500": Source("HuggingFaceH4/MATH-500", "test", "problem", "answer"),
    "minerva": Source("math-ai/minervamath", "test", "question", "answer"),
    "olympiad-bench": Source("math-ai/olympiadbench", "test", "question", "final_answer", context="context"),
    "gpqa-diamond": Source(
        "Idavidrein/gpqa", "train", "Question", "Correct Answer", "gpqa_diamond",
        ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A question with its instruction, the right answer, and an id made of the question."""

    prompt: str
    answer: str
    prompt_id: str


def prepare(name: str, output: Path, local: Path | None = None) -> str:
    """Write the files of one data set, and say what was read and written.

    Args:
        name: a key of ``SOURCES``.
        output: folder of the results.
        local: folder of local files in place of the hub.

    Raises:
        TaskError: a data set that cannot be loaded, has no rows, or lacks a column.
    """
    from datasets import Dataset

    source = SOURCES[name]
    rows = _load(name, source, local)
    tasks, read, contradictory = merged(source, rows)
    if not tasks:
        raise TaskError(f"{name} has no rows with one answer to a question ({read} were read)")
    unread = _unread_by_the_judge(tasks)
    for folder in ("jsonl", "parquet"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_trl_row(task), ensure_ascii=False) for task in tasks]
    (output / "jsonl" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    verl = [_verl_row(name, i, task) for i, task in enumerate(tasks)]
    Dataset.from_list(verl).to_parquet(str(output / "parquet" / f"{name}.parquet"))
    said = f"{name}: {read} rows read, {len(tasks)} tasks written"
    said += f", {contradictory} questions with several answers left out" if contradictory else ""
    said += f"; math-verify cannot read {len(unread)} answers: {', '.join(unread[:5])}" if unread else ""
    return said


def merged(source: Source, rows: Iterator[Mapping[str, Any]]) -> tuple[list[Task], int, int]:
    """The tasks of a data set: one for each question, in order of first appearance.

    Returns:
        The tasks; the number of rows read; and the number of questions left out because their copies have different
        answers.
    """
    answers: dict[str, set[str]] = {}
    kept: dict[str, Mapping[str, Any]] = {}
    read = 0
    for row in rows:
        read += 1
        question = _question(source, row)
        kept.setdefault(question, row)
        answers.setdefault(question, set()).add(_answer(source, row))
    tasks = [_task(source, question, row) for question, row in kept.items() if len(answers[question]) == 1]
    return tasks, read, len(kept) - len(tasks)


def _load(name: str, source: Source, local: Path | None) -> Iterator[Mapping[str, Any]]:
    """The rows of a data set, after a check of its columns."""
    import datasets

    datasets.disable_progress_bars()
    if local is None:
        where = f"{source.hub} on the hub"
        try:
            dataset = datasets.load_dataset(source.hub, source.configuration, split=source.split)
        except Exception as error:  # the library raises many kinds of exceptions
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TaskError(f"cannot load {where}: {line} (leave it out with --only, or use --from)") from error
    else:
        paths = [local / f"{name}{suffix}" for suffix in LOADERS]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise TaskError(f"there is no {' or '.join(path.name for path in paths)} in {local}: add it, or use --only")
        where = str(path)
        dataset = datasets.load_dataset(LOADERS[path.suffix], data_files=where, split="train")
    there = dataset.column_names
    for column in source.needed:
        if column not in there:
            known = ", ".join(there)
            raise TaskError(f"{where} has no column {column!r}; it has: {known}. Change SOURCES in prepare.py")
    read = [column for column in there if column in {*source.needed, source.context}]
    return iter(dataset.select_columns(read))


def _question(source: Source, row: Mapping[str, Any]) -> str:
    """The text of the question, without an instruction."""
    value = row[source.question]
    text = str(value if isinstance(value, str) else value[-1]["content"]).strip()
    if text.startswith(DAPO_BEGINS) and text.endswith(DAPO_ENDS):
        text = text.partition("\n\n")[2].removesuffix(DAPO_ENDS).strip()
    context = row.get(source.context) if source.context else None
    return f"{context.strip()}\n\n{text}" if context else text


def _answer(source: Source, row: Mapping[str, Any]) -> str:
    """The right answer as LaTeX without dollar signs: of verl's structure, of a list of answers, or of a number."""
    value = row[source.answer]
    if isinstance(value, Mapping):
        if "ground_truth" not in value:
            raise TaskError(f"the column {source.answer!r} has no 'ground_truth'; it has: {', '.join(value)}")
        value = value["ground_truth"]
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = ", ".join(str(each) for each in value)
    if isinstance(value, float) and value.is_integer():  # AMC's answers are stored as 27.0
        value = int(value)
    text = str(value).replace("\\$", "").replace("$", "").strip()
    power = re.fullmatch(
        r"([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d+)", text
    )  # Minerva's 4.5e33; math-verify reads Euler's number
    return rf"{power[1]} \times 10^{{{int(power[2])}}}" if power else text


def _task(source: Source, question: str, row: Mapping[str, Any]) -> Task:
    answer, identity = _answer(source, row), content_id(question)
    if not source.wrong:
        return Task(f"{question}\n\n{INSTRUCTION}", answer, identity)
    choices = [answer, *(str(row[column]).strip() for column in source.wrong)]
    random.Random(int(identity, 16)).shuffle(choices)  # an order of its own for each question, the same in every run
    listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    return Task(f"{question}\n\n{listed}\n\n{CHOOSE}", "ABCD"[choices.index(answer)], identity)


def _unread_by_the_judge(tasks: Sequence[Task]) -> list[str]:
    """Ids of the tasks whose right answer math-verify cannot parse: they never have a reward."""
    rows = [_trl_row(task) for task in tasks]
    rewards = named_reward("math")([row["prompt"] for row in rows], [""] * len(rows), [row["answer"] for row in rows])
    return [row["prompt_id"] for row, reward in zip(rows, rewards, strict=True) if reward is None]


def _trl_row(task: Task) -> dict[str, Any]:
    # Between dollar signs, or math-verify would read 11\sqrt{2} as 11. verl's judge puts the bare answer into a box.
    return {"prompt": [_user(task)], "answer": f"${task.answer}$", "prompt_id": task.prompt_id}


def _verl_row(name: str, index: int, task: Task) -> dict[str, Any]:
    return {
        "data_source": name,
        "prompt": [_user(task)],
        "ability": "MATH",
        "reward_model": {"style": "rule", "ground_truth": task.answer},
        "extra_info": {"index": index},
        "prompt_id": task.prompt_id,
    }


def _user(task: Task) -> dict[str, str]:
    return {"role": "user", "content": task.prompt}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the data sets named on the command line; 1 and one line of text where one cannot be used."""
    parser = argparse.ArgumentParser(description="Write the paper's data for verl, TRL and the evaluation.")
    parser.add_argument("output", type=Path, metavar="DATA", help="folder of the results")
    parser.add_argument("--from", type=Path, dest="local", metavar="FOLDER", help="local files in place of the hub")
    parser.add_argument("--only", nargs="+", choices=SOURCES, default=list(SOURCES), metavar="NAME", help="data sets")
    given = parser.parse_args(argv)
    try:
        for name in given.only:
            print(prepare(name, given.output, given.local), flush=True)
    except TaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
