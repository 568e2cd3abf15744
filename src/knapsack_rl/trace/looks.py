"""What a plan was made with, for a replay that repeats it: the features of a prompt are written once, in 16 bits each.

`knapsack_rl.beliefs.looks` keeps them in 16 bits too, so nothing is lost. They take about 1.4 kB a prompt for 512
features: as much as its text.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures

# More features than a plan can be made with (`knapsack_rl.beliefs.looks`).
MOST_FEATURES = 4096


@dataclass(frozen=True, eq=False)
class StepFeatures:
    """The rows of features of a step that are new in the file, or other than before.

    Attributes:
        width: features of each prompt, F; 0 where they cannot be written.
        at_U: positions in the plan of the prompts whose rows these are, ``[U]``.
        rows_U_F: the rows, NaN where a feature is unknown, ``[U, F]``; None for a plan whose features cannot be written
            (more than 16 bits, or several confidences).
    """

    width: int
    at_U: IntArray
    rows_U_F: NDArray[np.float16] | None

    def to_json(self) -> dict[str, object]:
        """As it is written."""
        rows = self.rows_U_F
        text = None if rows is None else base64.b64encode(rows.astype("<f2").tobytes()).decode("ascii")
        return {"width": self.width, "at": self.at_U, "rows": text}

    @classmethod
    def from_json(cls, given: Any, prompts: int) -> StepFeatures:
        """What `to_json` wrote of a plan for this number of prompts.

        Raises:
            ValueError: it is not that.
        """
        if not isinstance(given, dict) or not {"width", "at", "rows"} <= given.keys():
            raise ValueError("it needs a width, positions and rows")
        width, at, rows = given["width"], given["at"], given["rows"]
        numbers = [width, *at] if isinstance(at, list) else [None]
        if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in numbers):
            raise ValueError("width and positions must be whole numbers")
        if width > MOST_FEATURES or any(each >= prompts for each in at):
            raise ValueError("its width or a position is too large")
        at_U = np.array(at, dtype=np.int64)
        if rows is None:
            return cls(width, at_U, None)
        if not isinstance(rows, str):
            raise ValueError("its rows must be text in base 64")
        try:
            data = base64.b64decode(rows, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("its rows are not in base 64") from None
        if len(data) != 2 * width * at_U.size:
            raise ValueError(f"it has {len(data)} bytes for {at_U.size} rows of {width} numbers")
        found = np.frombuffer(data, dtype="<f2").astype(np.float16).reshape(at_U.size, width)
        if np.isinf(found).any():
            raise ValueError("a feature is infinite")
        return cls(width, at_U, found)


@dataclass(eq=False)
class FeatureLog:
    """What a file holds of the features of each prompt so far.

    Attributes:
        begins: whether the file holds no other features: a prompt without a row is then unknown, and need not be
            written as such; for the writer.
        hashes: of the last row that was written, by prompt; for the writer.
        rows: the last row, by prompt; for the reader.
    """

    begins: bool = True
    hashes: dict[str, int] = field(default_factory=dict)
    rows: dict[str, NDArray[np.float16]] = field(default_factory=dict)

    def news(self, prompt_ids: tuple[str, ...], given: PromptFeatures) -> StepFeatures:
        """What is to be written of the features of a plan, and take it as written."""
        features_P_F = np.asarray(given.features_P_F, dtype=np.float64)
        width = features_P_F.shape[1]
        with np.errstate(over="ignore"):
            rows_P_F = features_P_F.astype(np.float16)
        exact = np.array_equal(rows_P_F.astype(np.float64), features_P_F, equal_nan=True)
        if not exact or np.isinf(rows_P_F).any() or given.confidence_P_C.shape[1] > 1 or width > MOST_FEATURES:
            return StepFeatures(0, np.zeros(0, dtype=np.int64), None)
        unknown = hash(np.full(width, np.nan, dtype=np.float16).tobytes()) if self.begins else None
        at: list[int] = []
        for i, (prompt_id, row) in enumerate(zip(prompt_ids, rows_P_F, strict=True)):
            digest = hash(row.tobytes())
            if self.hashes.get(prompt_id, unknown) != digest:
                self.hashes[prompt_id] = digest
                at.append(i)
        return StepFeatures(width, np.array(at, dtype=np.int64), rows_P_F[at])

    def learn(self, prompt_ids: tuple[str, ...], step: StepFeatures) -> None:
        """Take in what a step holds."""
        if step.rows_U_F is not None:
            for i, row in zip(step.at_U.tolist(), step.rows_U_F, strict=True):
                self.rows[prompt_ids[i]] = row

    def look(self, prompt_ids: tuple[str, ...], step: StepFeatures, log_odds_P: FloatArray | None) -> PromptFeatures:
        """The features that a plan was made with.

        Raises:
            ValueError: they were not written, or rows of another width were.
        """
        if step.rows_U_F is None:
            raise ValueError("the features of this step's prompts could not be written")
        features_P_F = np.full((len(prompt_ids), step.width), np.nan)
        for i, prompt_id in enumerate(prompt_ids):
            row = self.rows.get(prompt_id)
            if row is not None:
                if row.size != step.width:
                    raise ValueError(f"prompt {prompt_id!r} has {row.size} features, and this step {step.width} each")
                features_P_F[i] = row
        confidence = np.zeros((len(prompt_ids), 0)) if log_odds_P is None else log_odds_P[:, None]
        return PromptFeatures(features_P_F, confidence)
