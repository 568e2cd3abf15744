"""The simulated cluster of docs/scale.md: its clock, and its figures at a small size."""

from __future__ import annotations

import numpy as np
from benchmarks import cluster

from knapsack_rl.plan import jobs
from knapsack_rl.rollouts import WorkerSpeeds, deal


def batch_of(lengths: list[list[float]]) -> object:
    lengths_P_N = np.array(lengths)
    return cluster.Batch({"plan": np.array([2, 2])}, lengths_P_N.mean(axis=1), lengths_P_N)


def test_a_worker_is_done_when_its_last_slot_is() -> None:
    batch = batch_of([[10.0, 20.0], [5.0, 7.0]])
    read = cluster.READING
    together = [np.array([0, 0, 1, 1])]
    done, work = cluster.generate(together, batch, slots=1)
    assert done.tolist() == work.tolist() == [42 + 2 * read]
    done, work = cluster.generate(together, batch, slots=4)
    assert done.tolist() == [10 + read]  # in parallel, and only the first job of a prompt prefills it
    assert work.tolist() == [42 + 2 * read]
    done, _ = cluster.generate([np.array([0, 1]), np.array([0, 1])], batch, 1, np.array([1.0, 2.0]))
    assert done.tolist() == [15 + 2 * read, (27 + 2 * read) / 2]  # each worker with the prompt prefills it


def test_every_dealer_deals_every_job_once() -> None:
    counts = np.array([2, 7, 0, 3, 16])
    for dealer in cluster.DEALERS.values():
        dealt = dealer(counts, 3, np.ones(5), 0)
        assert np.sort(np.concatenate(dealt)).tolist() == jobs(counts).tolist()


def test_uneven_groups_take_no_longer_per_token_and_naive_dealing_does() -> None:
    times: dict[tuple[str, str], list[float]] = {}
    for seed in range(5):
        batch = cluster.make_batch(256, seed)
        for plan in ("uniform", "uneven"):
            for name, dealer in cluster.DEALERS.items():
                dealt = dealer(batch.plans[plan], 16, batch.expected_P, seed)
                ends = [cluster.generate(dealt, batch.again(i), 8)[0].max() for i in range(3)]
                tokens = sum(batch.again(i).tokens(plan) for i in range(3))
                times.setdefault((plan, name), []).append(sum(ends) / tokens)
    time = {key: float(np.mean(found)) for key, found in times.items()}
    assert time["uneven", "deal"] <= 1.05 * time["uniform", "deal"]  # docs/scale.md: 1.02, with more seeds
    for name in ("rows as they lie", "whole groups in turn"):
        assert time["uneven", name] > 1.05 * time["uneven", "deal"]


def test_unknown_speeds_are_learned() -> None:
    random = np.random.default_rng(0)
    truth = np.exp(random.uniform(0, np.log(8), 16))
    batch, learned = cluster.make_batch(256, 0), WorkerSpeeds(16)
    times = np.zeros((3, 12))
    for step in range(12):
        today = truth * random.lognormal(-0.005, 0.1, 16)
        for row, speeds in enumerate((truth, learned.optimistic(), np.ones(16))):
            dealt = deal(batch.plans["uneven"], 16, batch.expected_P, step, speeds)
            done, work = cluster.generate(dealt, batch.again(step), 8, today)
            times[row, step] = done.max()
            if row == 1:
                learned.observe(work, work / today)
    known, found, alike = times.sum(axis=1)
    assert found < 1.15 * known  # docs/scale.md: 1.10 over 20 steps
    assert alike > 1.5 * known
