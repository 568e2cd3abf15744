"""Two processes on a CPU (torchrun, gloo) against one."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from allocators import allocator_of
from knapsack_rl.trace import Trace, read_trace

SCRIPT = Path(__file__).parent / "two_processes.py"
RUN = {"max_steps": 6, "half_life": 50.0}


def train(folder: Path, world_size: int, **settings: Any) -> tuple[list[dict[str, Any]], Trace]:
    """What each process reported, and the trace. `accelerate launch --cpu` would quietly run one process only."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), str(world_size), json.dumps(RUN | settings)]
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world_size)]
    assert [report["world_size"] for report in reports] == [world_size] * world_size
    return reports, read_trace(folder / "trace.jsonl")


BUFFERED = {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 32}


@pytest.mark.parametrize("changes", [{}, pytest.param(BUFFERED, marks=pytest.mark.e2e)], ids=str)
def test_two_processes_are_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    (alone,), trace_1 = train(tmp_path / "one", 1, **changes)
    pair, trace_2 = train(tmp_path / "two", 2, **changes)
    assert pair[0]["weights"] == pair[1]["weights"]
    assert pair[0]["advantages"] == pair[1]["advantages"] == pytest.approx(alone["advantages"], abs=1e-5)
    if not changes:  # with several steps a batch, TRL shuffles it on each process by itself
        np.testing.assert_allclose(pair[0]["parameters"], alone["parameters"], atol=1e-4)
    assert len(trace_1.steps) == len(trace_2.steps) > 0
    straddled = 0
    for one, two in zip(trace_1.steps, trace_2.steps, strict=True):
        assert one.plan.prompt_ids == two.plan.prompt_ids
        assert one.plan.counts_P.tolist() == two.plan.counts_P.tolist()
        assert one.outcomes.rewards_PG.tolist() == two.outcomes.rewards_PG.tolist()
        straddled += sum(two.plan.counts_P) // 2 not in np.cumsum(two.plan.counts_P)
    assert straddled, "no group lay on both processes: the test proves less than it says"
    assert any(len(set(step.plan.counts_P.tolist())) > 1 for step in trace_2.steps), "the plans were all uniform"


@pytest.mark.parametrize("begins", ["", small.LETTERS * 3], ids=["whole", "begins"])
def test_two_processes_share_a_pool_and_its_hidden_states(tmp_path: Path, begins: str) -> None:
    """24 prompts, 16 candidates a step of which some come twice; hidden states differ by rounding only.

    Where all prompts begin alike, each process reads that once.
    """
    changes = {"rule": "calibrated", "pool": 2, "max_steps": 5, "begins": begins}
    (alone,), trace_1 = train(tmp_path / "one", 1, **changes)
    pair, trace_2 = train(tmp_path / "two", 2, **changes)
    assert pair[0]["weights"] == pair[1]["weights"]
    assert pair[0]["advantages"] == pair[1]["advantages"] == pytest.approx(alone["advantages"], abs=1e-5)
    assert [report["continues"] for report in (alone, *pair)] == [True if begins else None] * 3
    for one, two in zip(trace_1.steps, trace_2.steps, strict=True):
        assert one.plan.prompt_ids == two.plan.prompt_ids
        assert one.plan.counts_P.tolist() == two.plan.counts_P.tolist()
        assert one.outcomes.rewards_PG.tolist() == two.outcomes.rewards_PG.tolist()
        np.testing.assert_allclose(one.plan.success_rates_P, two.plan.success_rates_P, rtol=1e-3)
    assert len(set(trace_2.steps[-1].plan.success_rates_P.tolist())) > 8, "nothing was known of the prompts"
    sizes = [len(step.plan.prompt_ids) for step in trace_2.steps]
    assert max(sizes) == 16 > min(sizes), "no prompt was offered twice in a batch"
    assert any((step.plan.counts_P == 0).any() for step in trace_2.steps)


def test_outcomes_of_sampled_rollouts_are_merged_exactly(tmp_path: Path) -> None:
    """The model's own samples: what both processes scored, in rank order, is what the beliefs learned."""
    pair, trace = train(tmp_path, 2, rollouts="model")
    allocator = allocator_of("beta", half_life=RUN["half_life"])
    for i, step in enumerate(trace.steps):
        prompts = [prompt for report in pair for prompt in report["scored"][i][0]]
        rewards = [reward for report in pair for reward in report["scored"][i][1]]
        assert rewards == step.outcomes.rewards_PG.tolist()
        changes = sum(a != b for a, b in itertools.pairwise(prompts))
        assert changes + 1 == np.count_nonzero(step.plan.counts_P)
        replayed = allocator.plan(step.plan.prompt_ids, step.plan.budget, step.plan.step)
        assert replayed.counts_P.tolist() == step.plan.counts_P.tolist()
        allocator.observe(step.outcomes)


@pytest.mark.parametrize("changes", [{}, {"rule": "calibrated", "pool": 2}], ids=str)
def test_two_processes_resume_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "rollouts": "model"} | changes
    through, trace = train(tmp_path / "through", 2, **saving)
    resumed, again = train(tmp_path / "again", 2, resume=str(tmp_path / "through" / "checkpoint-4"), **saving)
    assert [r["weights"] for r in resumed] == [r["weights"] for r in through]
    assert [s.plan.counts_P.tolist() for s in again.steps] == [s.plan.counts_P.tolist() for s in trace.steps[4:]]
    assert [s.outcomes.rewards_PG.tolist() for s in again.steps] == [
        s.outcomes.rewards_PG.tolist() for s in trace.steps[4:]
    ]


def replacements(trace: Trace) -> list[tuple[int, int, int, int]]:
    """Step and row of every rollout that a kept success must replace, and step and row at which that was sampled.

    By the rewards alone: the last row of a group of failures, by the last row of its prompt that succeeded before.
    """
    due, last = [], {}
    for i, step in enumerate(trace.steps):
        groups = [np.flatnonzero(step.plan.group_PG == group) for group in range(len(step.plan.prompt_ids))]
        solved = [rows[step.outcomes.rewards_PG[rows] > 0] for rows in groups]
        for name, rows, right in zip(step.plan.prompt_ids, groups, solved, strict=True):
            if len(rows) > 1 and not len(right) and name in last:
                due.append((i, int(rows[-1]), *last[name]))
        last |= {
            name: (i, int(right[-1])) for name, right in zip(step.plan.prompt_ids, solved, strict=True) if len(right)
        }
    return due


def test_two_processes_keep_the_same_successes(tmp_path: Path) -> None:
    """A kept success may be used in another process than the one that sampled it: on rank 1 what rank 0 has found.

    SGD, because Adam would scale differences that are rounding up to whole steps.
    """
    changes = {"keep_successes": True, "num_iterations": 2, "max_steps": 16, "prompts": 16, "rollouts": "placed"}
    changes |= {"optim": "sgd", "learning_rate": 2.0}
    (alone,), trace = train(tmp_path / "one", 1, **changes)
    pair, trace_2 = train(tmp_path / "two", 2, **changes)
    assert [step.plan.counts_P.tolist() for step in trace_2.steps] == [
        step.plan.counts_P.tolist() for step in trace.steps
    ]
    due = replacements(trace)
    assert due == replacements(trace_2)
    ranks = [(row // 16, origin // 16) for _, row, _, origin in due]
    assert {(1, 0), (1, 1), (0, 0)} <= set(ranks), f"the ranks of use and origin are {ranks}: this proves too little"
    batches = [rows_0 + rows_1 for rows_0, rows_1 in zip(pair[0]["batches"], pair[1]["batches"], strict=True)]
    for step, row, origin_step, origin in due:
        tokens, advantage, old = batches[step][row]
        assert tokens == batches[origin_step][origin][0]
        assert advantage > 0 and len(old) == len(tokens)
    assert len(batches) == len(alone["batches"]) == 8
    for found, expected in zip(batches, alone["batches"], strict=True):
        assert [row[0] for row in found] == [row[0] for row in expected]  # without padding, so the masks too
        np.testing.assert_allclose([row[1] for row in found], [row[1] for row in expected], atol=1e-5)
        np.testing.assert_allclose(*(np.concatenate([row[2] for row in rows]) for rows in (found, expected)), atol=1e-4)
    assert pair[0]["weights"] == pair[1]["weights"]
    np.testing.assert_allclose(pair[1]["every_parameter"], alone["every_parameter"], atol=1e-4)
    assert pair[0]["kept_used"] == alone["kept_used"] == len(due)
    for name, expected in alone["kept"].items():
        assert pair[0]["kept"][name] == pair[1]["kept"][name] == pytest.approx(expected, abs=1e-4)
    ratios, ratios_2 = ([kept.metrics.get("kept_ratio", 1.0) for kept in each.kept] for each in (trace, trace_2))
    assert ratios_2 == pytest.approx(ratios, abs=1e-4) and min(ratios) < 0.9
