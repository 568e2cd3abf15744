"""The simulator reproduces published figures of real runs, except where docs/simulator.md says so."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import simulator, transitions

from knapsack_arena.simulator import PRESETS


@pytest.mark.parametrize("preset", ["balanced", "hard", "late"])
def test_the_published_rule_raises_the_share_of_rollouts_and_hardly_that_of_prompts(preset: str) -> None:
    known, got = simulator.KNOWN[preset], simulator.one_step(preset, 30)
    assert got[:2] == pytest.approx(known[:2], abs=0.03)
    assert got[2:] == pytest.approx(known[2:], abs=5)
    assert got[1] - got[0] > 0.15
    assert abs(got[3] - got[2]) < 8


@pytest.fixture(scope="module")
def runs() -> dict[str, object]:
    return {rule: transitions.simulate(rule, each=16) for rule in ("uniform", "paper")}


def test_uniform_groups_move_prompts_as_grpo_did(runs: dict) -> None:
    matrix = runs["uniform"].by_new_rollouts()
    assert transitions.distance(matrix, transitions.GRPO) < 4
    # In every row the statuses come in the printed order of frequency, where 5 points or more are between them.
    for row, printed in zip(matrix, transitions.GRPO, strict=True):
        apart = printed[:, None] - printed >= 5
        assert (row[:, None] > row)[apart].all()


def test_the_published_rule_changes_what_it_was_seen_to_change(runs: dict) -> None:
    """Measured by the runs' own rollouts; by new rollouts only the first three columns agree."""
    uniform, published = runs["uniform"], runs["paper"]
    printed = transitions.KNAPSACK - transitions.GRPO
    own, new = (
        published.by_own_rollouts() - uniform.by_own_rollouts(),
        published.by_new_rollouts() - uniform.by_new_rollouts(),
    )
    assert transitions.distance(published.by_own_rollouts(), transitions.KNAPSACK) < 4
    same, decided = transitions.agreement(own)
    assert (same, decided) >= (14, 16)
    assert np.corrcoef(own.ravel(), printed.ravel())[0, 1] > 0.7
    for change in (own, new):
        assert change[0, 0] < 0 < change[0, 2]  # fewer stuck, more become medium
        assert change[1, 0] < 0 < change[1, 2]


def test_by_new_rollouts_the_printed_gain_of_solved_prompts_is_not_there(runs: dict) -> None:
    """A finding: two rollouts of a prompt that is nearly solved say "always solved" more often than sixteen do."""
    published = runs["paper"]
    change = published.by_new_rollouts() - runs["uniform"].by_new_rollouts()
    assert (change[1:, 4] < 0).all()
    assert (
        (published.by_own_rollouts() - published.by_new_rollouts())[:, 3].max()
        < 0
        < (published.by_own_rollouts() - published.by_new_rollouts())[:, 4].min()
    )


def test_learning_slows_down_and_carries_over(runs: dict) -> None:
    run = runs["uniform"]
    early, late = np.mean(run.rollouts[67:167]), np.mean(run.rollouts[-100:])
    assert early - late > 0.1  # ever fewer mixed groups
    rise = run.after_P.mean() - run.before_P.mean()
    assert 0.2 < rise < 0.35
    impossible = np.mean(run.before_P < 1e-6)
    assert np.mean(run.after_P < 1e-3) == pytest.approx(impossible, abs=0.02)
    assert 0.65 < run.held_out < run.after_P.mean()


def test_presets_keep_their_shares_of_mixed_groups() -> None:
    for preset, known in simulator.KNOWN.items():
        rates = 1 / (1 + np.exp(-PRESETS[preset](20_000, 0).logits_P))
        assert 1 - np.mean(rates**8 + (1 - rates) ** 8) == pytest.approx(known[0], abs=0.02)
