"""The letters of the paper and the names of the code.

| paper        | code               | meaning                                                       |
|--------------|--------------------|---------------------------------------------------------------|
| i, M         | index along ``_P`` | prompts of a step                                             |
| N_i          | ``counts_P``       | rollouts of each prompt: the size of its GRPO group           |
| n = 0..N_up  | axis ``_N``        | candidate counts                                              |
| p_i          | ``success_rates_P``| chance that one rollout succeeds                              |
| Value(n, p)  | ``values_P_N``     | worth of n rollouts to a prompt; column n is n rollouts       |
| Value(n+1)-Value(n) | ``marginals_P_N`` | worth of the (n+1)-th rollout; column n takes n to n+1  |
| N_total      | ``budget``         | rollouts of a step, the length of every flat ``_PG`` array    |
| N_low, N_up  | ``low_P``, ``high_P`` | limits on a prompt's count                                 |
| lambda       | ``price``          | value of the last rollout bought                              |
| r_ij         | ``rewards_PG``     | rewards of all rollouts, flat, group after group              |

Axes are separated by underscores (``values_P_N``); fused letters are one flattened axis (``rewards_PG``).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
