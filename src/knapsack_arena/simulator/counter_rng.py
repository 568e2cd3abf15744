"""Counter-based random numbers: the j-th rollout of a prompt in a step is the same for every rule and round.

Rules that request the same rollouts, in any number of rounds, therefore get the same rewards.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.beliefs.ids import KeyArray
from knapsack_rl.notation import FloatArray, IntArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def uniforms(seed: int, step: int, stream: int, rows: IntArray, numbers: IntArray) -> FloatArray:
    """A number in (0, 1) for each counter (seed, step, stream, row, number): SplitMix64 (Steele et al. 2014).

    Args:
        seed, step, stream: the same for all.
        rows, numbers: one of each per random number, below 2^32.
    """
    key = 0
    for part in (seed, step, stream):
        key = int(_mixed(np.array([(key + part * _GOLDEN + 1) & _MASK], dtype=np.uint64))[0])
    counter = (rows.astype(np.uint64) << np.uint64(32)) | numbers.astype(np.uint64)
    bits = _mixed(_mixed(counter * np.uint64(_GOLDEN) + np.uint64(key)) + np.uint64(key))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(seed: int, step: int, stream: int, rows: IntArray, numbers: IntArray) -> FloatArray:
    """A standard normal number for each counter, by Box and Muller; uses the streams ``stream`` and ``stream + 1``."""
    radius = np.sqrt(-2.0 * np.log(uniforms(seed, step, stream, rows, numbers)))
    found: FloatArray = radius * np.cos(2.0 * np.pi * uniforms(seed, step, stream + 1, rows, numbers))
    return found


def _mixed(bits: KeyArray) -> KeyArray:
    """SplitMix64's finalizer: every bit of the input changes about half of the output's."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: KeyArray = bits ^ (bits >> np.uint64(31))
    return mixed
