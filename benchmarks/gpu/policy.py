"""The laboratory's policy on a GPU: `knapsack_arena.lab.policy.Policy`, with success rates measured by sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.gpu.learner import Learner
from benchmarks.gpu.llama import Llama, Sampler, Tokens
from knapsack_rl.features.policy import policy_features
from knapsack_rl.notation import FloatArray

# Prompts of a forward pass where nothing is generated.
PROMPTS = 512


@dataclass(frozen=True)
class Machine:
    """What runs of one process share.

    Attributes:
        model: its weights are changed by each run.
        sampler: of that model.
        tokenizer: of that model.
    """

    model: Llama
    sampler: Sampler
    tokenizer: Tokenizer

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of texts, without any special ones."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


class SampledPolicy:
    """A causal language model and numbered prompts, whose answers a program verifies.

    Attributes:
        prompts: tokens of each prompt.
        samples: rollouts of each prompt in `success_rates`.
    """

    def __init__(
        self,
        machine: Machine,
        prompts: Sequence[str],
        verify: Callable[[str, str], bool],
        learning_rate: float,
        samples: int = 4,
    ) -> None:
        """The machine's model as it is now, with a new optimizer.

        Args:
            machine: whose model is trained.
            prompts: texts.
            verify: whether an answer to a prompt is right.
            learning_rate: of AdamW, constant.
            samples: rollouts of each prompt in `success_rates`.
        """
        self.machine, self.samples = machine, samples
        self._texts, self._verify = prompts, verify
        self.prompts = machine.tokens(prompts)
        self._learner = Learner(machine.model, learning_rate)
        self._measured = 0

    def right(self, row: int, tokens: Tokens) -> bool:
        """Whether an answer to a prompt ends, and is right."""
        *said, last = tokens
        return last == self.machine.sampler.end and self._verify(self._texts[row], self.machine.tokenizer.decode(said))

    def sample(self, which: Sequence[int], counts: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        """Sample ``counts`` answers to each prompt at temperature 1; flat, group after group."""
        seed = int(torch.randint(2**31, (1,), generator=generator))
        rows = np.repeat(which, counts)
        answers: list[Tokens] = []
        most = self.machine.sampler.rows
        for start in range(0, len(rows), most):
            groups = Counter(rows[start : start + most].tolist())  # in the order of their first row
            prompts = [self.prompts[row] for row in groups]
            answers += self.machine.sampler.sample(prompts, list(groups.values()), seed + start)
        return answers

    @torch.no_grad()
    def log_probs(self, which: Sequence[int], sampled: Sequence[Tokens]) -> list[FloatArray]:
        """Log-probabilities of the tokens of answers under the policy now; one array of each answer's length."""
        if not sampled:
            return []
        losses, row = self.machine.model.losses([self.prompts[i] for i in which], sampled)
        counts = torch.bincount(row, minlength=len(sampled)).tolist()
        return [-each.double().cpu().numpy() for each in losses.split(counts)]

    def learn(self, which: Sequence[int], sampled: Sequence[Tokens], advantages: torch.Tensor) -> float:
        """Take one optimizer step of GRPO on rollouts of the current policy, as the laboratory's policy does.

        The gradient of -advantage * ratio is that of advantage * cross entropy where the ratio is 1.
        """
        in_all = sum(map(len, sampled))
        return -float(self._learner.step([self.prompts[i] for i in which], sampled, advantages.tolist(), in_all))

    def success_rates(self, which: Sequence[int]) -> FloatArray:
        """Success rates of prompts, each from ``samples`` rollouts; ``[P]``."""
        self._measured += 1
        generator = torch.Generator().manual_seed(self._measured)
        counts = [self.samples] * len(which)
        answers = self.sample(which, counts, generator)
        rows = np.repeat(which, self.samples)
        right = [self.right(int(row), tokens) for row, tokens in zip(rows, answers, strict=True)]
        return np.array(right, dtype=np.float64).reshape(len(which), self.samples).mean(axis=1)

    def hidden_states(self, which: Sequence[int]) -> FloatArray:
        """`policy_features` of each prompt, by the last two layers; ``[P, 2 * hidden + 1]``."""
        found = []
        for start in range(0, len(which), PROMPTS):
            last, before, logits = self.machine.model.last_states(
                [self.prompts[i] for i in which[start : start + PROMPTS]]
            )
            found.append(policy_features([last, before], logits))
        return torch.cat(found).double().cpu().numpy()
