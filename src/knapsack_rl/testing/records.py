"""What allocators have learned from in the conformance suite: records that all differ."""

from __future__ import annotations

from knapsack_rl.outcomes import Outcomes

NAN = float("nan")


def known() -> list[str]:
    """The prompts of `history`."""
    return [*history().prompt_ids]


def history() -> Outcomes:
    """One visit each, in step 0. No rate occurs twice, nor with its mirror image 1 - p: ties are the rule's own."""
    groups = [("never", [0.0] * 16), ("always", [1.0] * 16)]
    for size in (11, 13, 17, 19, 23):
        for k in range(1, (size + 1) // 2):
            solved = k if (size + k) % 3 else size - k
            groups.append((f"{solved} of {size}", [1.0] * solved + [0.0] * (size - solved)))
    return Outcomes.of_groups(0, groups)


def later() -> Outcomes:
    """A second visit to some, and a first to another."""
    return Outcomes.of_groups(2, [("never", [0.0, 1.0, 0.0]), ("5 of 17", [1.0]), ("new", [1.0, 1.0, 0.0, 0.0])])
