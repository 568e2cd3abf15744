"""Which task a row of verl's data set is, and which rows are offered twice where two passes over the data join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from knapsack_rl.beliefs.ids import content_id, id_text, row_id

# Column with the id of a prompt: it stays with a prompt's rollouts, also in a checkpoint of unfinished rollouts.
PROMPT_FIELD = "knapsack_prompt"

# Columns that are no part of a row of the data set: verl and this package add them.
ADDED = ("uid", "global_steps", "validate", "dummy_tensor", "__rollout_n__", "__do_sample__", PROMPT_FIELD)


def task_ids(
    by: str,
    version: int,
    columns: Mapping[str, Sequence[Any]],
    prompt_key: str = "prompt",
    left_out: set[str] | None = None,
) -> list[str]:
    """Stable ids of the rows of a batch: rows with the same prompt and another answer, seed or image are two tasks.

    Args:
        by: ``index``: by all columns; ``content``: by all but the index, so that copies of a row share one belief.
        version: rule of ids, as in `Session.id_version`.
        columns: the batch, by column.
        prompt_key: the column that ``raw_prompt`` was made from.
        left_out: names of columns whose values no id can be made of; such columns are left out and added to it.

    Raises:
        ValueError: an empty ``prompt_id``; under version 1, a prompt that cannot be hashed and has no index.
    """
    if version == 1:
        return _ids_of_prompts(by, *(columns[name] for name in ("index", "data_source", "raw_prompt")))
    unused = {*ADDED, prompt_key, *(["index"] if by == "content" else [])}
    names = [name for name in columns if name not in unused]
    ids = []
    for values in zip(*(columns[name] for name in names), strict=True):
        row = dict(zip(names, values, strict=True))
        extra = row.get("extra_info")
        if by == "content" and isinstance(extra, Mapping):
            row["extra_info"] = {name: value for name, value in extra.items() if name != "index"}
        row["prompt"] = row.pop("raw_prompt")
        ids.append(row_id(row, left_out=left_out))
    return ids


def has_own_indices(dataset: Any) -> bool:
    """Whether no two rows of the data set have the same ``data_source`` and ``extra_info.index``.

    Then two rows of a batch with the same index are one row, offered twice. Read by column, a second for some million
    rows. False where that cannot be known: data sets of other classes than verl's own, or without an index.
    """
    try:
        import pyarrow as pa
        import pyarrow.compute as pc

        table = dataset.dataframe.data.table
        index = pc.struct_field(table.column("extra_info"), "index")
        rows = pa.table({"source": table.column("data_source"), "index": index})
        return not index.null_count and rows.group_by(["source", "index"]).aggregate([]).num_rows == len(rows)
    except (ImportError, AttributeError, KeyError, ValueError, TypeError, NotImplementedError):
        return False  # pyarrow's errors are of these types


def first_offers(sources: Sequence[Any], indices: Sequence[Any]) -> list[int]:
    """The positions of the rows of a batch without those that were offered before in it, by their own indices."""
    first: dict[tuple[str, str], int] = {}
    for i, (source, index) in enumerate(zip(sources, indices, strict=True)):
        first.setdefault((str(source), id_text(index)), i)
    return list(first.values())


def _ids_of_prompts(by: str, indices: Sequence[Any], sources: Sequence[Any], prompts: Sequence[Any]) -> list[str]:
    """The first rule of ids: of the prompt, and by index also of the index and the source."""
    ids = []
    for index, source, prompt in zip(indices, sources, prompts, strict=True):
        try:
            content = content_id(prompt, version=1)
        except TypeError as error:
            if by == "content" or index in (None, 0):
                raise ValueError(
                    f"a prompt of {source!r} cannot be hashed ({error}): give every row its own extra_info.index, "
                    "other than 0, and set knapsack.prompt_id=index"
                ) from error
            content = "-"
        ids.append(content if by == "content" else f"{source}/{index}/{content}")
    return ids
