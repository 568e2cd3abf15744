"""Which tasks' gradients agree (arXiv 2511.12779), on the laboratory's base models.

    python -m benchmarks.affinity [--regimes skills,tail,keys] [--prompts 32]

First table: error of log pi(answer) to first order after a change of the weights by a share of their norm, in a random
direction and along the gradient of the mean rate; root of the squared error over the squared log-probability, and over
the squared change of it.

Second table: tasks are the five families of strings in four levels, and random groups of keys. Two affinities from
gradients projected to 400 dimensions: the cosine of two tasks' expected updates, and what a task in a random subset
adds to another one (a logistic regression on the answers of each of 200 subsets, as in the paper; relative to what
training on the task alone does). Average linkage makes clusters of each, compared with the families by normalised
mutual information; *by chance* is that of the same clusters with permuted labels. The last rows are what 20 updates on
one task really do to the mean rate of another one, over its mean sqrt(p (1 - p)); *rank correlation* is with these.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import normalized_mutual_info_score

from benchmarks.directions import LEAST, Answers, Weights, further_items
from benchmarks.measure import machine
from knapsack_arena.lab.environment import LanguageModelEnvironment
from knapsack_arena.lab.policy import Policy
from knapsack_arena.lab.regimes import Item, Regime
from knapsack_arena.lab.trials import find_regime
from knapsack_rl.notation import FloatArray, IntArray

DIMENSIONS: Final = 400
SHARES: Final = (0.001, 0.005, 0.01)
KEY_GROUPS, SUBSETS, PERMUTATIONS = 8, 200, 200
# Of real training on one task.
UPDATES, LEARNING_RATE = 20, 2e-4
# Ridge of a subset's regression, as a share of the mean squared length of its rows.
RIDGE: Final = 1.0
_AT_A_TIME, _COLUMNS, _NEWTON_STEPS = 64, 16_384, 8


@dataclass(frozen=True)
class Tasks:
    """Projected gradients of the answers of several tasks.

    Attributes:
        names: of the tasks; the family comes before the last hyphen.
        items: prompts, one a row, task after task.
        task_R: the task of each row.
        rates_R: success rates.
        gradients_R_D: gradients of the right answers' log-probabilities.
    """

    names: tuple[str, ...]
    items: tuple[Item, ...]
    task_R: IntArray
    rates_R: FloatArray
    gradients_R_D: FloatArray

    @property
    def families(self) -> list[str]:
        """The family of each task."""
        return [name.rpartition("-")[0] for name in self.names]

    @property
    def updates_R_D(self) -> FloatArray:
        """Expected updates of GRPO, grad p / sqrt(p (1 - p))."""
        return np.sqrt(self.rates_R / (1 - self.rates_R))[:, None] * self.gradients_R_D

    def means(self) -> FloatArray:
        """The mean update of each task, ``[tasks, D]``."""
        return np.stack([self.updates_R_D[self.task_R == task].mean(0) for task in range(len(self.names))])


def first_order_errors(answers: Answers, items: Sequence[Item], share: float, along: bool) -> tuple[float, float]:
    """Root of the squared error of log pi, over that of log pi and over that of its change."""
    rows, weights = answers.rows(items), answers.weights
    if along:
        direction = answers.mean_rate_gradient(rows)
    else:
        generator = torch.Generator().manual_seed(0)
        direction = {
            name: torch.randn(weight.shape, generator=generator).to(weight.dtype) for name, weight in weights.items()
        }
    length = share * _norm(weights) / _norm(direction)
    change = {name: length * each for name, each in direction.items()}
    rates_R, slopes_R = answers.along(change, rows)
    with torch.no_grad():
        before_R, after_R = (
            answers.log_probs(each, *rows).double().numpy()
            for each in (weights, {name: weight + change[name] for name, weight in weights.items()})
        )
    error_R = after_R - before_R - slopes_R / rates_R
    squares = float((error_R**2).sum())
    return (squares / float((after_R**2).sum())) ** 0.5, (squares / float(((after_R - before_R) ** 2).sum())) ** 0.5


def _norm(weights: Weights) -> float:
    return float(np.sqrt(sum(float((each.double() ** 2).sum()) for each in weights.values())))


def projected(gradients_R_W: torch.Tensor, dimensions: int = DIMENSIONS, seed: int = 0) -> FloatArray:
    """Rows times a matrix of N(0, 1 / dimensions), drawn part by part; ``[rows, dimensions]``."""
    generator, whole = torch.Generator().manual_seed(seed), torch.zeros(len(gradients_R_W), dimensions)
    for start in range(0, gradients_R_W.shape[1], _COLUMNS):
        part = gradients_R_W[:, start : start + _COLUMNS]
        whole += part @ torch.randn(part.shape[1], dimensions, generator=generator)
    found: FloatArray = (whole / dimensions**0.5).double().numpy()
    return found


def tasks_of(answers: Answers, train: Sequence[Item], prompts: int) -> Tasks:
    """The tasks among training prompts, with at most so many prompts each; keys are dealt to groups at random."""
    random, by_task = np.random.default_rng(0), defaultdict[str, list[Item]](list)
    for row in random.permutation(len(train)).tolist():
        item = train[row]
        name = f"key-{random.integers(KEY_GROUPS)}" if item.source.startswith("key-") else item.source
        if len(by_task[name]) < prompts:
            by_task[name].append(item)
    names = tuple(sorted(by_task))
    items = tuple(item for name in names for item in by_task[name])
    task_R = np.repeat(np.arange(len(names)), [len(by_task[name]) for name in names])
    parts = [answers.rows(items[start : start + _AT_A_TIME]) for start in range(0, len(items), _AT_A_TIME)]
    with torch.no_grad():
        rates = torch.cat([answers.log_probs(answers.weights, *part).exp() for part in parts])
    rates_R = np.clip(rates.double().numpy(), LEAST, 1 - LEAST)
    return Tasks(names, items, task_R, rates_R, projected(torch.cat([answers.per_sample(part) for part in parts])))


def cosines(tasks: Tasks) -> FloatArray:
    """Cosines of the tasks' mean updates, ``[tasks, tasks]``."""
    means = tasks.means()
    unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(float).tiny)
    found: FloatArray = unit @ unit.T
    return found


def adapted(tasks: Tasks, subset: Sequence[int]) -> FloatArray:
    """The change of the projected weights that a logistic regression on a subset's answers makes, ``[D]``.

    A prompt counts with its right answers (share p, advantage sqrt(q / p)) and its wrong ones (share q, advantage
    -sqrt(p / q), mean gradient -p / q times that of the right answer): both weigh sqrt(p q).
    """
    rows = np.isin(tasks.task_R, np.asarray(subset))
    p, g = tasks.rates_R[rows], tasks.gradients_R_D[rows]
    margins, weights = np.concatenate([g, (p / (1 - p))[:, None] * g]), np.tile(np.sqrt(p * (1 - p)), 2)
    ridge = RIDGE * float((weights * (margins**2).sum(1)).sum())
    change = np.zeros(g.shape[1])
    for _ in range(_NEWTON_STEPS):
        miss = 1 / (1 + np.exp(np.clip(margins @ change, -30, 30)))
        slope = margins.T @ (weights * miss) - ridge * change
        curvature = (margins * (weights * miss * (1 - miss))[:, None]).T @ margins
        change += np.linalg.solve(curvature + ridge * np.eye(change.size), slope)
    return change


def subset_affinity(tasks: Tasks, size: int, subsets: int = SUBSETS, seed: int = 0) -> FloatArray:
    """What j in a random subset adds to i's objective, over what training on i alone does; ``[tasks, tasks]``.

    The paper takes the mean with j; here the mean without j is subtracted, so that 0 is no effect. Symmetric.
    """
    random, count, means = np.random.default_rng(seed), len(tasks.names), tasks.means()
    chosen = np.stack([np.isin(np.arange(count), random.choice(count, size, replace=False)) for _ in range(subsets)])
    changes = np.stack([adapted(tasks, np.flatnonzero(each).tolist()) for each in chosen])
    alone = np.array([means[task] @ adapted(tasks, [task]) for task in range(count)])
    worth_S_T = changes @ means.T / np.maximum(alone, np.finfo(float).tiny)
    found = np.zeros((count, count))
    for i in range(count):
        with_i, worth = chosen[:, i], worth_S_T[:, i]
        for j in range(count):
            there = chosen[:, j]
            found[i, j] = worth[with_i & there].mean() - worth[with_i & ~there].mean() if i != j else 0.0
    return (found + found.T) / 2


def trained_affinity(answers: Answers, tasks: Tasks, updates: int = UPDATES) -> FloatArray:
    """Changes of i's mean rate by training on j, over i's mean sqrt(p (1 - p)); symmetric, ``[tasks, tasks]``.

    From the same weights, with expected updates of GRPO and AdamW as the laboratory has it.
    """
    parts = [answers.rows([tasks.items[row] for row in np.flatnonzero(tasks.task_R == task)]) for task in _all(tasks)]
    deviation_R = np.sqrt(tasks.rates_R * (1 - tasks.rates_R))
    spreads = np.array([deviation_R[tasks.task_R == task].mean() for task in _all(tasks)])

    def rates_now(weights: Weights) -> FloatArray:
        with torch.no_grad():
            return np.array([float(answers.log_probs(weights, *part).exp().mean()) for part in parts])

    before, changes = rates_now(answers.weights), []
    for part in parts:
        weights = {name: weight.clone().requires_grad_() for name, weight in answers.weights.items()}
        optimizer = torch.optim.AdamW(weights.values(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
        for _ in range(updates):
            optimizer.zero_grad()
            log_probs = answers.log_probs(weights, *part)
            p = log_probs.detach().exp().clamp(LEAST, 1 - 1e-6)
            (-((p / (1 - p)).sqrt() * log_probs).mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        changes.append((rates_now(weights) - before) / spreads)
    on_j_of_i = np.stack(changes)
    np.fill_diagonal(on_j_of_i, 0.0)
    found: FloatArray = (on_j_of_i + on_j_of_i.T) / 2
    return found


def _all(tasks: Tasks) -> range:
    return range(len(tasks.names))


def clusters(affinity: FloatArray, count: int) -> IntArray:
    """Clusters by average linkage, ``[tasks]``."""
    distance = affinity.max() - affinity
    np.fill_diagonal(distance, 0.0)
    found: IntArray = AgglomerativeClustering(count, metric="precomputed", linkage="average").fit_predict(distance)
    return found


def agreement(affinity: FloatArray, families: Sequence[str]) -> tuple[float, float]:
    """Normalised mutual information of clusters and families, and its mean over permuted ones; nan for one family."""
    if len(set(families)) == 1:
        return float("nan"), float("nan")
    found, random = clusters(affinity, len(set(families))), np.random.default_rng(0)
    permuted = [normalized_mutual_info_score(random.permutation(list(families)), found) for _ in range(PERMUTATIONS)]
    return float(normalized_mutual_info_score(list(families), found)), float(np.mean(permuted))


def rank_correlation(one: FloatArray, other: FloatArray) -> float:
    """Spearman's correlation of the affinities of different tasks."""
    pairs = np.triu_indices(len(one), 1)
    ranks = [np.argsort(np.argsort(each[pairs])) for each in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def levels(affinity: FloatArray, families: Sequence[str]) -> tuple[float, float, float]:
    """Mean affinity within families of strings, between different families, and among groups of keys; nan for none."""
    same = np.equal.outer(np.array(families), np.array(families)) & ~np.eye(len(families), dtype=bool)
    key = np.array(families) == "key"
    parts = (same & ~key[:, None], ~same & ~np.eye(len(families), dtype=bool), same & key[:, None])
    within, between, among = (float(affinity[part].mean()) if part.any() else float("nan") for part in parts)
    return within, between, among


def main(words: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regimes", default="skills,tail,keys")
    parser.add_argument("--prompts", type=int, default=32, help="of a task, at most")
    given = parser.parse_args(words)
    answers, regime = _read("skills")
    items = further_items(regime)
    print(f"{machine()}\n\n| change of the weights | direction | error of log pi | of its change |\n|---|---|---|---|")
    for along in (False, True):
        for share in SHARES:
            of_all, of_change = first_order_errors(answers, items, share, along)
            name = "gradient" if along else "random"
            print(f"| {100 * share:g} % | {name} | {100 * of_all:.2f} % | {100 * of_change:.1f} % |", flush=True)
    heads = ("regime", "affinity", "within families", "between", "among keys", "NMI", "by chance", "rank correlation")
    print(f"\n| {' | '.join(heads)} |\n|{len(heads) * '---|'}")
    for name in given.regimes.split(","):
        answers, regime = _read(name)
        tasks = tasks_of(answers, regime.train, given.prompts)
        trained = trained_affinity(answers, tasks)
        found = {"cosine": cosines(tasks), "subsets": subset_affinity(tasks, max(2, len(tasks.names) // 4))}
        for kind, affinity in {**found, "trained": trained}.items():
            numbers = [*levels(affinity, tasks.families), *agreement(affinity, tasks.families)]
            numbers.append(rank_correlation(affinity, trained))
            print(f"| {name} | {kind} | {' | '.join(f'{each:.2f}' for each in numbers)} |", flush=True)


def _read(regime: str) -> tuple[Answers, Regime]:
    environment = LanguageModelEnvironment(find_regime(regime), 0)
    assert isinstance(environment.policy, Policy)
    return Answers(environment.policy), environment.regime


if __name__ == "__main__":
    main()
