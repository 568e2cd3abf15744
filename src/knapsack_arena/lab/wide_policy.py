"""The laboratory's policy for a pretrained model: a vocabulary of tens of thousands, and short answers.

The same numbers as `Policy`, up to rounding (a test compares all of them), by another way: the rows of a forward pass
are one forest of tokens, in which equal beginnings are one node. What all prompts begin with is computed once, a prompt
once for all its answers, and equal answers once; nothing is padded, and logits exist only where the next token is
needed. Passes are in bfloat16 where the processor multiplies it, on float32 weights.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import DynamicCache

from knapsack_arena.lab.policy import Policy, Tokens, inverse_cumulative
from knapsack_rl.features.policy import policy_features
from knapsack_rl.notation import FloatArray
from knapsack_rl.tasks.models import model_path
from knapsack_rl.tasks.recipe import Progress, Recipe, Teacher

# Tokens of a forward pass where nothing is generated: every pair of them costs a little, in the attention.
TOKENS: Final = 384
# Steps of the supervised start with a smaller learning rate.
WARM_UP: Final = 5


class Forest:
    """Rows of tokens in which equal beginnings are one node. A node comes after its parent.

    Attributes:
        tokens, depths: of each node.
        parents: the node before it, negative at the first token of a row.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.parents: list[int] = []
        self._found: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int]) -> list[int]:
        """The nodes of a row."""
        nodes, last = [], -1
        for token in tokens:
            last = self.follow(last, token)
            nodes.append(last)
        return nodes

    def follow(self, node: int, token: int) -> int:
        """The node of a token after a node."""
        found = self._found.setdefault((node, token), len(self))
        if found == len(self):
            self.tokens.append(token)
            self.parents.append(node)
            self.depths.append(0 if node < 0 else self.depths[node] + 1)
        return found

    def seen(self, start: int = 0) -> torch.Tensor:
        """Whether each node from ``start`` on attends to each node: to itself and those before it in its row."""
        seen = np.zeros((len(self) - start, len(self)), dtype=bool)
        for node in range(start, len(self)):
            above = node
            while above >= 0:
                seen[node - start, above] = True
                above = self.parents[above]
        return torch.from_numpy(seen)

    def close(self) -> None:
        """Make every further node a new one, also where an equal one exists."""
        self._found.clear()


class WidePolicy(Policy):
    """`Policy`, for a wide vocabulary; answers are short."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """As `Policy`."""
        super().__init__(*arguments, **named)
        group = self.optimizer.param_groups[0]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), group["lr"], betas=group["betas"], weight_decay=0.0, fused=True
        )

    @torch.no_grad()
    def success_rates(self, which: Sequence[int]) -> FloatArray:
        """As `Policy.success_rates`."""
        if self.verify is not None:
            return super().success_rates(which)
        return np.exp([each.sum() for each in self.log_probs(which, [self.answers[row] for row in which])])

    @torch.no_grad()
    def log_probs(self, which: Sequence[int], sampled: Sequence[Tokens]) -> list[FloatArray]:
        """As `Policy.log_probs`."""
        found = [np.empty(0)] * len(sampled)
        with in_bfloat16():
            for rows, forest, nodes in self._forests(range(len(sampled)), which, sampled):
                needed = sorted({node for each in nodes for node in each})
                values = dict(zip(needed, self._log_probs(forest, needed).tolist(), strict=True))
                for row, each in zip(rows, nodes, strict=True):
                    found[row] = np.array([values[node] for node in each])
        return found

    @torch.no_grad()
    def hidden_states(self, which: Sequence[int]) -> FloatArray:
        """As `Policy.hidden_states`."""
        found = torch.empty(len(which), 2 * self.model.config.hidden_size + 1)
        with in_bfloat16():
            for rows, forest, _ in self._forests(range(len(which)), which, [[]] * len(which)):
                ends = torch.tensor([forest.add(self.prompts[which[row]])[-1] for row in rows])
                seen = self._read(forest, ends, output_hidden_states=True)
                layers = [layer[0, ends] for layer in (seen.hidden_states[-1], seen.hidden_states[-2])]
                found[rows] = policy_features(layers, seen.logits[0])
        return found.double().numpy()

    @torch.no_grad()
    def sample(self, which: Sequence[int], counts: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        """As `Policy.sample`."""
        forest, cache, read = Forest(), DynamicCache(), 0
        at = np.repeat([forest.add(self.prompts[row])[-1] for row in which], counts)  # the end of each row
        answers: list[Tokens] = [[] for _ in at]
        alive = np.arange(len(at))
        with in_bfloat16():
            for _ in range(self.longest):
                # Random numbers for all rows, finished ones too: an answer does not depend on when others end.
                drawn = torch.rand(len(at), generator=generator)[alive]
                nodes, place = np.unique(at[alive], return_inverse=True)
                logits = self._read(forest, torch.from_numpy(nodes - read), cache, read).logits[0].float()
                read = len(forest)
                forest.close()  # a prompt may begin with another one and its answer
                chosen = inverse_cumulative(logits[torch.from_numpy(place)], drawn).tolist()
                for row, token in zip(alive.tolist(), chosen, strict=True):
                    answers[row].append(token)
                    if token != self.end:
                        at[row] = forest.follow(int(at[row]), token)
                alive = alive[[token != self.end for token in chosen]]
                if not alive.size:
                    break
        return answers

    def _backward(
        self,
        rows: list[int],
        which: Sequence[int],
        sampled: Sequence[Tokens],
        advantages: torch.Tensor,
        in_all: int,
    ) -> float:
        """As `Policy._backward`: a node weighs as much as all rollouts through it."""
        total = 0.0
        with in_bfloat16():
            for part, forest, nodes in self._forests(rows, which, sampled):
                weight_by_node: dict[int, float] = defaultdict(float)
                for row, each in zip(part, nodes, strict=True):
                    for node in each:
                        weight_by_node[node] += float(advantages[row]) / in_all
                log_probs = self._log_probs(forest, list(weight_by_node))
                ratio = (log_probs - log_probs.detach()).exp()
                loss = -(torch.tensor(list(weight_by_node.values())) * ratio).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        return total

    def _forests(
        self, rows: Iterable[int], which: Sequence[int], sampled: Sequence[Tokens]
    ) -> Iterator[tuple[list[int], Forest, list[list[int]]]]:
        """Parts of the rows, each with its forest and the nodes of its answers; rows of a prompt come together."""
        part, forest, nodes = list[int](), Forest(), list[list[int]]()
        for row in sorted(rows, key=lambda row: which[row]):
            if len(forest) >= TOKENS:
                yield part, forest, nodes
                part, forest, nodes = [], Forest(), []
            prompt = self.prompts[which[row]]
            part.append(row)
            nodes.append(forest.add([*prompt, *sampled[row]])[len(prompt) :])
        if part:
            yield part, forest, nodes

    def _log_probs(self, forest: Forest, nodes: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of these nodes' tokens after their parents, ``[nodes]``."""
        parents, place = np.unique([forest.parents[node] for node in nodes], return_inverse=True)
        logits: torch.Tensor = self._read(forest, torch.from_numpy(parents)).logits[0].float()
        row = torch.from_numpy(place)
        tokens = torch.tensor([forest.tokens[node] for node in nodes])
        return logits[row, tokens] - logits.logsumexp(-1)[row]

    def _read(
        self, forest: Forest, at: torch.Tensor, cache: DynamicCache | None = None, start: int = 0, **more: bool
    ) -> Any:
        """Read the nodes from ``start`` on, after those in the cache; logits at the places ``at`` among them."""
        return self.model(
            input_ids=torch.tensor([forest.tokens[start:]]),
            attention_mask=forest.seen(start)[None, None],
            position_ids=torch.tensor([forest.depths[start:]]),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=at,
            **more,
        )


def in_bfloat16() -> AbstractContextManager[None]:
    """Matrix products in bfloat16 where the processor has instructions for them; weights stay in float32."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases do not say
    return torch.autocast("cpu", torch.bfloat16, enabled=bool(able.get("amx_bf16") or able.get("avx512_bf16")))


def build_from_pretrained(name: str, recipe: Recipe, folder: Path, progress: Progress | None, teacher: Teacher) -> None:
    """Teach a model of `model_path` the answers of ``teacher``, by cross entropy; save it with its tokenizer."""
    pairs = teacher(random.Random(recipe.seed), recipe.steps * recipe.batch)
    prompts, answers = zip(*pairs, strict=True)
    policy = WidePolicy(Path(model_path(name)), prompts, answers, recipe.learning_rate, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `build_warm_started`
    try:
        for step in range(recipe.steps):
            rows = range(step * recipe.batch, (step + 1) * recipe.batch)
            for group in policy.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * min(1, (step + 1) / WARM_UP)
            # The gradient of the ratio is that of the log-probability.
            policy.learn(rows, [policy.answers[row] for row in rows], torch.ones(recipe.batch))
            if progress is not None:
                progress(step + 1, recipe.steps)
    finally:
        torch.set_num_threads(threads)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
