"""What prompts look like when a step is planned: features that tell them apart, and the policy's present confidence.

Features (hidden states, a file of them, or texts) are computed once per prompt and remembered: measured on the
laboratory's runs, those of a prompt's first look are worth as much as fresh ones (docs/beliefs.md). The confidence, the
log odds of the most probable next token, changes with the policy: it is asked for at every step.

A plan carries the look that it was made with (`Plan.features`), and its rollouts are learned with that look. So nothing
here needs to know which plans are under way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapsack_rl.beliefs.ids import KeyArray, prompt_keys
from knapsack_rl.files import BeliefFileError, SavedToFile, State, check_kind, saved_array
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures, text_ids

# Wider features are reduced by a random projection, which preserves inner products approximately, to bound time.
MAX_FEATURES = 512
# The probability of the most probable token is kept within this distance of 0 and 1: its log odds stay finite.
LEAST_DOUBT = 0.01
# Digits of the log odds: kernels that round differently then rarely change a plan.
DIGITS = 2
# Prompts remembered by default: 205 MB of `MAX_FEATURES` features each.
CAPACITY = 200_000

# Computes the features, ``[U, F]``, of the prompts at these positions, ``[U]``, of a call.
Describe = Callable[[IntArray], FloatArray]


def log_odds(log_prob_P: ArrayLike) -> FloatArray:
    """Compute the confidence of a look from the log-probability of the most probable next token.

    Args:
        log_prob_P: natural logarithms at temperature 1, such as that of one greedy token, ``[P]``; NaN where there is
            no look.

    Returns:
        Log odds, ``[P]``, between those of 0.01 and 0.99, rounded to 0.01; NaN where there is no look.
    """
    best_P = np.clip(np.exp(np.asarray(log_prob_P, dtype=np.float64)), LEAST_DOUBT, 1 - LEAST_DOUBT)
    odds_P: FloatArray = np.round(np.log(best_P) - np.log1p(-best_P), DIGITS) + 0.0  # no negative zero
    return odds_P


def scaled(features_P_F: FloatArray) -> FloatArray:
    """Reduce features to at most `MAX_FEATURES`, and scale each row to a root mean square of 1; rows of 0 stay 0.

    The projection is drawn once, from a fixed seed: the same in every process.
    """
    largest = np.abs(features_P_F).max(axis=1, keepdims=True, initial=0)
    found: FloatArray = features_P_F / np.where(largest > 1e100, largest, 1)  # their squares would overflow
    if found.shape[1] > MAX_FEATURES:
        found = found @ _projection(found.shape[1])
    if found.shape[1]:
        found = found / np.maximum(np.sqrt((found**2).mean(axis=1, keepdims=True)), 1e-12)
    return found


class Looks(SavedToFile):
    """Features of the prompts seen so far, in 16 bits each, and the looks made of them. For use by one thread.

    Attributes:
        source: what made the features, such as the name of a model.
        capacity: prompts that are remembered; the oldest are forgotten first.
    """

    def __init__(self, source: str = "", capacity: int = CAPACITY) -> None:
        """Remember nothing yet.

        Raises:
            ValueError: a capacity below 1.
        """
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it counts prompts and must be at least 1")
        self.source, self.capacity = source, capacity
        self._row_of: dict[int, int] = {}
        self._keys: KeyArray = np.zeros(0, dtype=np.uint64)
        self._rows: NDArray[np.float16] = np.zeros((0, 0), dtype=np.float16)
        self._oldest = 0  # the row that is overwritten next, once there are `capacity` rows

    def __len__(self) -> int:
        return len(self._row_of)

    def __call__(
        self, prompt_ids: Sequence[str], log_odds_P: FloatArray | None = None, describe: Describe | None = None
    ) -> PromptFeatures:
        """Look at prompts: remembered features, new ones where there are none, and this step's confidence.

        Args:
            prompt_ids: ids of the prompts, ``[P]``.
            log_odds_P: present `log_odds`, ``[P]``; NaN where there is no look, None if there is none at all.
            describe: computes the features of prompts that are not known, given their positions; it is called at most
                once, and what it returns is remembered. None: they stay unknown.

        Returns:
            One row per prompt: NaN where its features or its confidence are not known. There is always one confidence,
            so that the shape is the same at every step.

        Raises:
            ValueError: features of another number than before or that are infinite, or log odds of other prompts.
        """
        keys = prompt_keys(text_ids(prompt_ids))
        row_P, new = self._find(keys)
        described = self._described(len(new), describe(new)) if describe is not None and new.size else None
        width = self._rows.shape[1] if described is None else described.shape[1]
        features_P_F = np.full((keys.size, width), np.nan)
        if (row_P >= 0).any():
            features_P_F[row_P >= 0] = self._rows[row_P[row_P >= 0]]
        if described is not None:
            position = {int(key): i for i, key in enumerate(keys[new])}
            unknown = np.flatnonzero(row_P < 0)
            features_P_F[unknown] = described[[position[int(key)] for key in keys[unknown]]]
            self._remember(keys[new], described)
        confidence_P = np.full(keys.size, np.nan) if log_odds_P is None else np.asarray(log_odds_P, dtype=np.float64)
        if confidence_P.shape != (keys.size,):
            raise ValueError(f"{keys.size} prompts came with log odds of shape {confidence_P.shape}: give one each")
        return PromptFeatures(features_P_F, confidence_P[:, None])

    def unknown(self, prompt_ids: Sequence[str]) -> IntArray:
        """Find the positions of prompts without features, each prompt once."""
        return self._find(prompt_keys(text_ids(prompt_ids)))[1]

    def remember(self, prompt_ids: Sequence[str], features_P_F: FloatArray) -> None:
        """Remember features, in place of earlier ones; a row with NaN is not remembered.

        Args:
            prompt_ids: ids of the prompts, ``[P]``.
            features_P_F: real numbers of any scale, ``[P, F]``; reduced and scaled by `scaled`.

        Raises:
            ValueError: features of another number than before, of other prompts, or infinite.
        """
        keys = prompt_keys(text_ids(prompt_ids))
        self._remember(keys, self._described(keys.size, features_P_F))

    def state_dict(self) -> State:
        """Return what is remembered as arrays and plain values, the oldest prompts first."""
        order = np.roll(np.arange(len(self)), -self._oldest)
        return {
            "kind": "looks",
            "source": self.source,
            "keys": self._keys[order],
            "features": self._rows[order],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, all of it, whatever the capacity; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another kind, or damaged.
        """
        check_kind(state, kind="looks")
        keys = saved_array(state, "keys", np.uint64, (None,))
        rows = saved_array(state, "features", np.float16, (keys.size, None))
        source, row_of = state.get("source"), {key: row for row, key in enumerate(keys.tolist())}
        if len(row_of) != keys.size or rows.shape[1] > MAX_FEATURES or not isinstance(source, str):
            raise BeliefFileError("the saved looks repeat a prompt, are too wide or name no source: restore the file")
        self.source, self.capacity = source, max(self.capacity, keys.size)
        self._keys, self._rows, self._row_of, self._oldest = keys, rows, row_of, 0

    def _find(self, keys: KeyArray) -> tuple[IntArray, IntArray]:
        """The row of each prompt, -1 for unknown ones, ``[P]``, and the positions of the unknown ones, each once."""
        row_P = np.array([self._row_of.get(key, -1) for key in keys.tolist()], dtype=np.int64)
        unknown = np.flatnonzero(row_P < 0)
        _, first = np.unique(keys[unknown], return_index=True)
        return row_P, unknown[np.sort(first)]

    def _described(self, prompts: int, features_P_F: FloatArray) -> NDArray[np.float16]:
        """Features as they are kept, after a check."""
        found = np.asarray(features_P_F, dtype=np.float64)
        if found.ndim != 2 or len(found) != prompts or np.isinf(found).any():
            raise ValueError(
                f"features of {prompts} prompts have shape {found.shape}, or are infinite: give one row of numbers for "
                "each prompt (NaN where they are not known)"
            )
        found = scaled(found)
        if len(self) and found.shape[1] != self._rows.shape[1]:
            raise ValueError(
                f"prompts have {found.shape[1]} features each, and those remembered have {self._rows.shape[1]}: use "
                "one source of features during the whole run"
            )
        return found.astype(np.float16)

    def _remember(self, keys: KeyArray, rows_P_F: NDArray[np.float16]) -> None:
        known = ~np.isnan(rows_P_F).any(axis=1)
        self._make_room(int(known.sum()), rows_P_F.shape[1])
        for key, row in zip(keys[known].tolist(), rows_P_F[known], strict=True):
            place = self._row_of.get(key)
            if place is None:
                place = len(self._row_of)
                if place == self.capacity:
                    place, self._oldest = self._oldest, (self._oldest + 1) % self.capacity
                    del self._row_of[int(self._keys[place])]
                self._keys[place], self._row_of[key] = key, place
            self._rows[place] = row

    def _make_room(self, more: int, width: int) -> None:
        """Lengthen the arrays for this many prompts more, at most to the capacity."""
        size = min(len(self) + more, self.capacity)
        if size > len(self._keys):
            size = min(max(size, 2 * len(self)), self.capacity)
            rows, keys = np.zeros((size, width), dtype=np.float16), np.zeros(size, dtype=np.uint64)
            if len(self):
                rows[: len(self)], keys[: len(self)] = self._rows[: len(self)], self._keys[: len(self)]
            self._rows, self._keys = rows, keys


@cache
def _projection(features: int) -> FloatArray:
    """A random projection to `MAX_FEATURES` dimensions, ``[features, MAX_FEATURES]``, the same in every process."""
    return np.random.default_rng(features).standard_normal((features, MAX_FEATURES))
