"""Successes that are kept: the last right answer to each prompt, for groups whose rollouts all fail.

A group that fails as a whole has no gradient. If an earlier success of its prompt was kept, one failed rollout of the
group is replaced by it: the batch keeps its shape, and the group has a gradient. Such a rollout was sampled from an
older policy (docs/value.md says what that biases). The idea is AR3PO's (arXiv 2509.25808); what a kept success is worth
to the knapsack is `knapsack_rl.values.kept_success_marginals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.files import BeliefFileError, State, as_array, saved_array
from knapsack_rl.notation import BoolArray, FloatArray, IntArray

DEFAULT_MAX_BYTES: Final = 256 * 2**20
# A token takes four bytes, its log-probability four; an entry as a whole about this many more, as tracemalloc has it.
_BYTES_PER_TOKEN, _BYTES_PER_ENTRY = 8, 900
# Arrays of a saved state that join those of the entries, and the array of their lengths.
_JOINED: Final = (
    ("tokens", np.int32, "lengths"),
    ("log_probs", np.float32, "lengths"),
    ("rewards", np.float64, "functions"),
)


@dataclass(frozen=True, eq=False)
class KeptSuccess:
    """A rollout that succeeded.

    Attributes:
        tokens_T: its tokens, end of sequence included, ``[T]``.
        log_probs_T: their log-probabilities under the policy that sampled them, ``[T]``; NaN where unknown.
        rewards_F: its reward by each reward function, ``[F]``.
        step: the generation step at which it was sampled.
    """

    tokens_T: NDArray[np.int32]
    log_probs_T: NDArray[np.float32]
    rewards_F: FloatArray
    step: int

    @property
    def bytes(self) -> int:
        """Memory that it takes, about, without its prompt's id."""
        return _BYTES_PER_ENTRY + _BYTES_PER_TOKEN * (self.tokens_T.size + self.rewards_F.size)

    def weight(self, log_prob: float, most: float = 1.0) -> float:
        """Truncated importance ratio min(pi_now / pi_then, ``most``) of the whole rollout.

        Args:
            log_prob: log-probability of its tokens under the policy now.
            most: largest ratio.
        """
        return float(min(np.exp(min(log_prob - float(self.log_probs_T.sum(dtype=np.float64)), 50.0)), most))


class KeptSuccesses:
    """The last success of each prompt, bounded in bytes: those of the lowest steps leave first.

    Attributes:
        max_bytes: most memory that the kept rollouts and the ids of their prompts may take.
        max_age: steps after which one is stale and not used any more; None for never.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES, max_age: float | None = None) -> None:
        """An empty store.

        Raises:
            ValueError: a size or an age that is not positive.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}: it must be positive; turn keeping off instead")
        # What a user has written may be of another type.
        if max_age is not None and not (isinstance(max_age, int | float) and max_age > 0):  # type: ignore[redundant-expr]
            raise ValueError(f"kept_max_age is {max_age!r}: it counts steps and must be a positive number, or None")
        self.max_bytes, self.max_age = max_bytes, max_age
        self._kept: dict[str, KeptSuccess] = {}
        # Prompts by the step of their success. Groups may come back late, so the order of `_kept` is not that of steps;
        # and there are far fewer steps than prompts to look through.
        self._prompts: dict[int, dict[str, None]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self._kept

    @property
    def bytes(self) -> int:
        """Memory that the kept rollouts and the ids of their prompts take, about."""
        return self._bytes

    def keep(
        self,
        prompt_id: str,
        step: int,
        tokens_T: Sequence[int] | IntArray,
        log_probs_T: Sequence[float] | FloatArray,
        rewards_F: Sequence[float] | FloatArray = (1.0,),
    ) -> bool:
        """Keep a success in place of the prompt's last one, and drop the oldest while there are too many bytes.

        One that is older than the prompt's last one came back late and is ignored, as is one that alone is too large.

        Returns:
            Whether it is kept.

        Raises:
            ValueError: arrays that are empty, or of different lengths.
        """
        tokens = np.array(tokens_T, dtype=np.int32).reshape(-1)
        log_probs = np.array(log_probs_T, dtype=np.float32).reshape(-1)
        if not tokens.size or tokens.size != log_probs.size:
            raise ValueError(
                f"a success of {prompt_id!r} has {tokens.size} tokens and {log_probs.size} log-probabilities: pass one"
                " log-probability for each token, and at least one token"
            )
        entry = KeptSuccess(tokens, log_probs, np.array(rewards_F, dtype=np.float64).reshape(-1), int(step))
        last = self._kept.get(prompt_id)
        if (last is not None and last.step > entry.step) or _size(prompt_id, entry) > self.max_bytes:
            return False
        if last is not None:
            self._drop(prompt_id)
        self._kept[prompt_id] = entry
        self._prompts.setdefault(entry.step, {})[prompt_id] = None
        self._bytes += _size(prompt_id, entry)
        while self._bytes > self.max_bytes:
            self._drop(next(iter(self._prompts[min(self._prompts)])))
        return prompt_id in self._kept

    def find(self, prompt_id: str, step: int) -> KeptSuccess | None:
        """The kept success of a prompt, unless there is none or it is stale at this step."""
        found = self._kept.get(prompt_id)
        if found is None or (self.max_age is not None and step - found.step > self.max_age):
            return None
        return found

    def has(self, prompt_ids: Sequence[str], step: int) -> BoolArray:
        """Whether `find` finds one, ``[P]``."""
        return np.array([self.find(prompt_id, step) is not None for prompt_id in prompt_ids], dtype=np.bool_)

    def count(self, step: int) -> int:
        """Number of prompts for which `find` finds one at this step."""
        if self.max_age is None:
            return len(self._kept)
        return sum(len(prompts) for then, prompts in self._prompts.items() if step - then <= self.max_age)

    def state_dict(self) -> State:
        """All kept successes, as arrays."""
        kept = list(self._kept.values())
        # Joined: numpy's array of text pads all ids to the longest one, and loses NUL at their ends.
        ids = [prompt_id.encode("utf-8", "surrogatepass") for prompt_id in self._kept]
        return {
            "id_bytes": np.frombuffer(b"".join(ids), dtype=np.uint8),
            "id_lengths": np.array([len(each) for each in ids], dtype=np.int64),
            "lengths": np.array([each.tokens_T.size for each in kept], dtype=np.int64),
            "steps": np.array([each.step for each in kept], dtype=np.int64),
            "functions": np.array([each.rewards_F.size for each in kept], dtype=np.int64),
            "rewards": np.concatenate([np.zeros(0), *(each.rewards_F for each in kept)]),
            "tokens": np.concatenate([np.zeros(0, np.int32), *(each.tokens_T for each in kept)]),
            "log_probs": np.concatenate([np.zeros(0, np.float32), *(each.log_probs_T for each in kept)]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: an array that is missing, of another type, or does not fit to the others.
        """
        ids, steps = _saved_ids(state), saved_array(state, "steps", np.int64, (None,))
        parts = [
            _split(saved_array(state, name, dtype, (None,), finite=False), state, lengths)
            for name, dtype, lengths in _JOINED
        ]
        restored = KeptSuccesses(self.max_bytes, self.max_age)
        try:
            for prompt_id, step, *arrays in zip(ids, steps.tolist(), *parts, strict=True):
                restored.keep(prompt_id, step, *arrays)
        except ValueError as error:  # of different numbers, or a success without a token
            raise BeliefFileError(f"kept successes are damaged: {error}") from error
        self._kept, self._prompts, self._bytes = restored._kept, restored._prompts, restored._bytes

    def _drop(self, prompt_id: str) -> None:
        entry = self._kept.pop(prompt_id)
        self._bytes -= _size(prompt_id, entry)
        prompts = self._prompts[entry.step]
        del prompts[prompt_id]
        if not prompts:
            del self._prompts[entry.step]


def _size(prompt_id: str, entry: KeptSuccess) -> int:
    """Memory that a kept success takes with the id of its prompt; Python has up to four bytes for a character."""
    return entry.bytes + len(prompt_id) * (1 if prompt_id.isascii() else 4)


def _split(joined: NDArray[Any], state: Mapping[str, Any], name: str) -> list[NDArray[Any]]:
    """The parts of an array, whose lengths are saved under ``name``.

    Raises:
        BeliefFileError: lengths that are missing, negative, or do not add up to the array's.
    """
    lengths = saved_array(state, name, np.int64, (None,))
    # No length is above the whole, so that the sum of damaged ones cannot wrap round to it unseen.
    if (lengths < 0).any() or (lengths > joined.size).any() or int(lengths.sum()) != joined.size:
        raise BeliefFileError(
            f"kept successes are damaged: the {name} of {lengths.size} parts do not add up to {joined.size}"
        )
    ends = np.cumsum(lengths)
    return [joined[start:end] for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


def _saved_ids(state: Mapping[str, Any]) -> list[str]:
    """Ids of prompts: joined UTF-8 or, as it was first written, an array of text.

    Raises:
        BeliefFileError: they are missing, or are no such text.
    """
    if "ids" in state:
        ids = as_array(state["ids"])
        if not isinstance(ids, np.ndarray) or ids.dtype.kind != "U" or ids.ndim != 1:
            raise BeliefFileError("kept successes are damaged: their ids are not an array of text")
        return [str(prompt_id) for prompt_id in ids.tolist()]
    parts = _split(saved_array(state, "id_bytes", np.uint8, (None,)), state, "id_lengths")
    try:
        return [part.tobytes().decode("utf-8", "surrogatepass") for part in parts]
    except UnicodeDecodeError as error:
        raise BeliefFileError(f"kept successes are damaged: their ids are not UTF-8 ({error})") from error


def failed_rollouts(group_PG: IntArray, successes_PG: BoolArray, groups: int) -> IntArray:
    """The rollout of each group that a kept success may replace: the last one of a group of failures.

    Args:
        group_PG: the group of each rollout, from 0 to ``groups - 1``, ``[PG]``.
        successes_PG: which rollouts succeeded, ``[PG]``.
        groups: number of groups.

    Returns:
        Its place in the batch, ``[P]``; -1 for groups with a success, and for groups of fewer than two rollouts, which
        would have no gradient with it either.
    """
    sizes_P = np.bincount(group_PG, minlength=groups)
    solved_P = np.bincount(group_PG, successes_PG, groups) > 0
    last_P = np.full(groups, -1, dtype=np.int64)
    last_P[group_PG] = np.arange(group_PG.size)  # the last of repeated indices is assigned
    return np.where((sizes_P >= 2) & ~solved_P, last_P, -1)
