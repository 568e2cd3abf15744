"""A pool of candidates: more prompts are offered to a plan than it has rollouts for, and it chooses among them too."""

from __future__ import annotations

from knapsack_rl.allocator import Method

# The others give every prompt a share, however many prompts there are: in a pool, groups of one.
CHOOSING: tuple[Method, ...] = ("calibrated", "posterior")
# The laboratory's tuning seeds have four ahead of two (docs/log.md).
DEFAULT_POOL = 4


def check_pool(pool: int, method: Method) -> None:
    """Refuse pools that make no sense.

    Args:
        pool: candidates of a step, in batches.
        method: what divides the rollouts among them.

    Raises:
        ValueError: less than one batch, or a pool for a method that does not choose prompts.
    """
    if pool < 1:
        raise ValueError(f"pool is {pool}: it counts batches of candidates, so it must be at least 1")
    if pool > 1 and method not in CHOOSING:
        raise ValueError(
            f"allocation {method!r} does not choose among a pool of candidates: use pool=1, or allocation "
            f"{' or '.join(CHOOSING)}"
        )


def least_rollouts(chosen: int | None, pool: int) -> int:
    """Least rollouts of a prompt: what the user chose; by default 2, and 0 where there is a pool to choose from."""
    if chosen is not None:
        return chosen
    return 0 if pool > 1 else 2


def default_pool(method: Method, chosen_least: int | None, average: int) -> int:
    """Batches of candidates where the user named no number: as many as do good, or 1 for what cannot leave prompts out.

    Args:
        method: what divides the rollouts.
        chosen_least: least rollouts of a prompt, if the user chose it.
        average: rollouts of a prompt on average.
    """
    can_choose = method in CHOOSING and not chosen_least
    return min(DEFAULT_POOL, average) if can_choose else 1
