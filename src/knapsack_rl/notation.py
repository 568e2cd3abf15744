"""The symbols of the paper, the names of the code, and the types that all modules share.

| paper        | code               | meaning                                                       |
|--------------|--------------------|---------------------------------------------------------------|
| i, M         | index along ``_P`` | prompts of a step                                             |
| N_i          | ``counts_P``       | rollouts of each prompt: the size of its GRPO group           |
| n = 0..N_up  | axis ``_N``        | candidate counts                                              |
| p_i          | ``success_rates_P``| probability that one rollout succeeds                         |
| Value(n, p)  | ``values_P_N``     | value of n rollouts of a prompt; column n is n rollouts       |
| Value(n+1)-Value(n) | ``marginals_P_N`` | value of the (n+1)-th rollout, in column n              |
| N_total      | ``budget``         | rollouts of a step, the length of every flat ``_PG`` array    |
| N_low, N_up  | ``low_P``, ``high_P`` | limits on a prompt's count                                 |
| lambda       | ``price``          | value of the last rollout selected                            |
| r_ij         | ``rewards_PG``     | rewards of all rollouts, flat, group after group              |

Axes are separated by underscores (``values_P_N``); adjacent letters are one flattened axis (``rewards_PG``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]


class PromptFeatures(NamedTuple):
    """Features of prompts at the time of planning, one row per prompt, as inputs of `CalibratedBeliefs`.

    NaN is an input that is not known.

    Attributes:
        features_P_F: real numbers of any scale, ``[P, F]``. One regression on all prompts relates them to success.
        confidence_P_C: a few numbers of the order of 1 with the same meaning for every prompt, such as the policy's
            confidence in its next token, ``[P, C]``; C may be 0. Their coefficients are fitted separately for each
            outcome of the prompt's last group.
    """

    features_P_F: FloatArray
    confidence_P_C: FloatArray

    def take(self, rows: IntArray) -> PromptFeatures:
        """Select the rows at these positions."""
        return PromptFeatures(self.features_P_F[rows], self.confidence_P_C[rows])


# The latest step: beliefs store the step of a prompt's last observation in 32 bits.
LAST_STEP = 2**31 - 1


def checked_step(step: int) -> int:
    """Return the step as an int.

    Raises:
        ValueError: not a whole number from 0 to `LAST_STEP`.
    """
    given: Any = step
    if not isinstance(given, int | np.integer) or isinstance(given, bool) or not 0 <= step <= LAST_STEP:
        raise ValueError(f"the step is {step!r}: count steps in whole numbers from 0 to {LAST_STEP}")
    return int(step)


def text_ids(prompt_ids: Iterable[object]) -> tuple[str, ...]:
    """Convert prompt ids to text: ``str`` (numpy's included) unchanged, whole numbers as decimal digits.

    Raises:
        TypeError: an id that is neither text nor a whole number; the message has its value and type.
    """
    ids: tuple[Any, ...] = tuple(prompt_ids)
    if set(map(type, ids)) <= {str}:  # the common case, ten times as fast
        return ids
    found = []
    for each in ids:
        if isinstance(each, str):
            found.append(str(each))
        elif isinstance(each, int | np.integer) and not isinstance(each, bool):
            found.append(str(int(each)))
        else:
            raise TypeError(f"the prompt id {each!r} is a {type(each).__name__}: ids are text or whole numbers")
    return tuple(found)
