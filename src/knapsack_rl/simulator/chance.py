"""Random numbers by address: the j-th rollout of a prompt in a step is the same whoever asks for it, and when.

So rules are compared on the same luck as far as they ask for the same rollouts, in however many rounds.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.ids import KeyArray
from knapsack_rl.notation import FloatArray, IntArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def uniforms(seed: int, step: int, stream: int, rows: IntArray, numbers: IntArray) -> FloatArray:
    """A number in (0, 1) for each address (seed, step, stream, row, number): SplitMix64 (Steele et al. 2014).

    Args:
        seed, step, stream: of all of them.
        rows, numbers: of each, below 2^32.
    """
    key = 0
    for part in (seed, step, stream):
        key = int(_mixed(np.array([(key + part * _GOLDEN + 1) & _MASK], dtype=np.uint64))[0])
    address = (rows.astype(np.uint64) << np.uint64(32)) | numbers.astype(np.uint64)
    bits = _mixed(_mixed(address * np.uint64(_GOLDEN) + np.uint64(key)) + np.uint64(key))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(seed: int, step: int, stream: int, rows: IntArray, numbers: IntArray) -> FloatArray:
    """A standard normal number for each address, by Box and Muller; takes up streams ``stream`` and ``stream + 1``."""
    radius = np.sqrt(-2.0 * np.log(uniforms(seed, step, stream, rows, numbers)))
    drawn: FloatArray = radius * np.cos(2.0 * np.pi * uniforms(seed, step, stream + 1, rows, numbers))
    return drawn


def _mixed(bits: KeyArray) -> KeyArray:
    """SplitMix64's finalizer: every bit of the input moves about half of the output's."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: KeyArray = bits ^ (bits >> np.uint64(31))
    return mixed
