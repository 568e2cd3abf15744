"""A language model as the laboratory uses it: sampling, exact success rates, hidden states, and GRPO's update.

The same updates as TRL's trainer (`loss_type="dapo"`, on-policy; a test compares them), without its generality: a run
of 150 steps takes less than a minute on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from knapsack_arena.lab.long_answers import Verifier
from knapsack_rl.features.policy import policy_features
from knapsack_rl.notation import FloatArray
from knapsack_rl.tasks.models import load_tokenizer
from knapsack_rl.tasks.tiny_model import exact_success_rates

Tokens = list[int]
# Rows per forward pass where nothing is generated.
ROWS = 256
# Answers with more tokens than this are trained on in parts of like length, which saves padding.
SHORT: Final = 16
_ROWS_OF_LONG: Final = 64
# Rollouts sampled at a time for success rates.
_SAMPLED_ROWS: Final = 1024


class PolicyLike(Protocol):
    """A policy as its environment uses it; `Policy` says what each is."""

    def right(self, row: int, tokens: Tokens) -> bool:
        """Whether an answer to a prompt is right."""
        ...

    def success_rates(self, which: Sequence[int]) -> FloatArray:
        """Success rates of prompts, ``[P]``."""
        ...

    def hidden_states(self, which: Sequence[int]) -> FloatArray:
        """Features of prompts, ``[P, F]``."""
        ...

    def sample(self, which: Sequence[int], counts: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        """Sample answers, group after group."""
        ...

    def log_probs(self, which: Sequence[int], sampled: Sequence[Tokens]) -> list[FloatArray]:
        """Log-probabilities of the tokens of answers."""
        ...

    def learn(self, which: Sequence[int], sampled: Sequence[Tokens], advantages: torch.Tensor) -> float:
        """Take one optimizer step; returns the loss."""
        ...


class Policy:
    """A causal language model and numbered prompts, each with one right answer, or with a program that judges answers.

    Attributes:
        prompts: tokens of each prompt.
        answers: tokens of its right answer, end of sequence included.
    """

    def __init__(
        self,
        folder: Path,
        prompts: Sequence[str],
        answers: Sequence[str],
        learning_rate: float,
        longest: int,
        verify: Verifier | None = None,
        samples: int = 4,
    ) -> None:
        """Load the model of a folder, with a new optimizer.

        Args:
            folder: a model and its tokenizer.
            prompts, answers: texts, one answer per prompt.
            learning_rate: of AdamW, constant.
            longest: most tokens of an answer.
            verify: judges answers; by default an answer is right if it equals the prompt's.
            samples: rollouts per prompt from which `success_rates` is estimated where answers are judged.
        """
        self.tokenizer = tokenizer = load_tokenizer(str(folder))
        self.rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.pad, self.end = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
        self.prompts: list[Tokens] = [list(ids) for ids in tokenizer(list(prompts))["input_ids"]]
        self.answers: list[Tokens] = [[*ids, self.end] for ids in tokenizer(list(answers))["input_ids"]]
        self.longest, self.verify, self.samples, self.updates = longest, verify, samples, 0
        self._sampled_rates: tuple[tuple[int, tuple[int, ...]], FloatArray] | None = None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.0)

    def right(self, row: int, tokens: Tokens) -> bool:
        """Whether an answer to a prompt is right; one that was cut off is not."""
        if self.verify is None:
            return tokens == self.answers[row]
        return tokens[-1] == self.end and self.verify(self.rows[row]["prompt"], self.tokenizer.decode(tokens[:-1]))

    def success_rates(self, which: Sequence[int]) -> FloatArray:
        """Success rates of prompts, ``[P]``: exact (`exact_success_rates`), or sampled where a program judges answers.

        A sampled rate p has a standard error of sqrt(p (1-p) / samples), four times as many samples before the first
        update. The same policy gives the same rates: samples are seeded by the number of updates.
        """
        if self.verify is None:
            return exact_success_rates(self.model, self.tokenizer, [self.rows[i] for i in which], ROWS)
        key = (self.updates, tuple(which))
        if self._sampled_rates is not None and self._sampled_rates[0] == key:
            return self._sampled_rates[1]
        samples = self.samples * (4 if self.updates == 0 else 1)
        generator = torch.Generator().manual_seed(self.updates)
        rates, at_a_time = [], max(_SAMPLED_ROWS // samples, 1)
        for start in range(0, len(which), at_a_time):
            part = list(which[start : start + at_a_time])
            answers = self.sample(part, [samples] * len(part), generator)
            rights = [self.right(part[i // samples], tokens) for i, tokens in enumerate(answers)]
            rates.append(np.array(rights, dtype=np.float64).reshape(len(part), samples).mean(1))
        self._sampled_rates = key, np.concatenate(rates) if rates else np.empty(0)
        return self._sampled_rates[1]

    @torch.no_grad()
    def log_probs(self, which: Sequence[int], sampled: Sequence[Tokens]) -> list[FloatArray]:
        """Log-probabilities of the tokens of answers under the policy now; one array of each answer's length."""
        found: list[FloatArray] = []
        for start in range(0, len(sampled), ROWS):
            rows = range(start, min(start + ROWS, len(sampled)))
            log_probs, mask = self._forward([which[row] for row in rows], [sampled[row] for row in rows])
            found += [
                values[: int(length)].double().numpy() for values, length in zip(log_probs, mask.sum(1), strict=True)
            ]
        return found

    @torch.no_grad()
    def hidden_states(self, which: Sequence[int]) -> FloatArray:
        """`policy_features` of each prompt, by the last two layers; ``[P, 2 * hidden + 1]``."""
        found = []
        for start in range(0, len(which), ROWS):
            tokens, mask = self._left_padded([self.prompts[i] for i in which[start : start + ROWS]])
            seen = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=_positions(mask),
                output_hidden_states=True,
                logits_to_keep=1,
            )
            layers = [layer[:, -1] for layer in (seen.hidden_states[-1], seen.hidden_states[-2])]
            found.append(policy_features(layers, seen.logits[:, -1]))
        return torch.cat(found).double().numpy()

    @torch.no_grad()
    def sample(self, which: Sequence[int], counts: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        """Sample ``counts`` answers to each prompt at temperature 1; flat, group after group.

        Each prompt is prefilled once for all its answers; finished answers leave the batch.
        """
        tokens, mask = self._left_padded([self.prompts[i] for i in which])
        read = self.model(
            input_ids=tokens, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1
        )
        rows = torch.repeat_interleave(torch.arange(len(which)), torch.tensor(counts))
        cache: DynamicCache = read.past_key_values
        cache.batch_select_indices(rows)
        logits, mask = read.logits[rows, -1], mask[rows]
        answers: list[Tokens] = [[] for _ in range(len(rows))]
        alive = torch.arange(len(rows))
        for place in range(self.longest):
            # Random numbers for all rows, finished ones too: an answer does not depend on when others end.
            drawn = torch.rand(len(rows), generator=generator)[alive]
            chosen = inverse_cumulative(logits, drawn)
            for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
                answers[row].append(token)
            going = (chosen != self.end).nonzero()[:, 0]
            if not len(going) or place == self.longest - 1:
                break
            if len(going) < len(alive):
                cache.batch_select_indices(going)
                alive, mask, chosen = alive[going], mask[going], chosen[going]
            mask = torch.cat([mask, torch.ones(len(alive), 1, dtype=mask.dtype)], dim=1)
            logits = self.model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=_positions(mask)[:, -1:],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        return answers

    def learn(self, which: Sequence[int], sampled: Sequence[Tokens], advantages: torch.Tensor) -> float:
        """Take one optimizer step of GRPO on rollouts of the current policy.

        The loss is the mean over all tokens of the batch of -advantage * ratio; the ratio is 1, and only its gradient
        matters. Rollouts of advantage 0 count in the mean and are not computed.

        Args:
            which: the prompt of each rollout, ``[rows]``.
            sampled: the tokens of each.
            advantages: ``[rows]``.

        Returns:
            The loss.
        """
        self.updates += 1
        in_all = sum(len(tokens) for tokens in sampled)
        rows = advantages.nonzero()[:, 0].tolist()
        if not rows:  # with a gradient of zero the optimizer still follows its momentum
            for weight in self.model.parameters():
                weight.grad = torch.zeros_like(weight)
            self.optimizer.step()
            return 0.0
        self.optimizer.zero_grad()
        total = self._backward(rows, which, sampled, advantages, in_all)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return total

    def _backward(
        self,
        rows: list[int],
        which: Sequence[int],
        sampled: Sequence[Tokens],
        advantages: torch.Tensor,
        in_all: int,
    ) -> float:
        """Compute the gradient of the loss of rollouts that have one; returns the loss."""
        parts, total = [rows], 0.0
        if self.longest > SHORT:
            rows.sort(key=lambda row: len(sampled[row]))
            parts = [rows[start : start + _ROWS_OF_LONG] for start in range(0, len(rows), _ROWS_OF_LONG)]
        for part in parts:
            log_probs, answer_mask = self._forward([which[row] for row in part], [sampled[row] for row in part])
            ratio = (log_probs - log_probs.detach()).exp()
            loss = -(advantages[part][:, None] * ratio * answer_mask).sum() / in_all
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _forward(self, which: Sequence[int], sampled: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of answers after their prompts, and the mask of their tokens; each ``[rows, longest]``."""
        tokens, mask = self._left_padded([self.prompts[i] for i in which])
        answers, answer_mask = self._right_padded(sampled)
        whole, attention = torch.cat([tokens, answers], 1), torch.cat([mask, answer_mask], 1)
        logits = self.model(
            input_ids=whole,
            attention_mask=attention,
            position_ids=_positions(attention),
            logits_to_keep=answers.shape[1] + 1,
        ).logits[:, :-1]
        return logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0], answer_mask

    def _left_padded(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, rows))
        tokens = torch.tensor([[self.pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return tokens, mask

    def _right_padded(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return tokens, mask


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def inverse_cumulative(logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """The token whose interval of the cumulative distribution contains the drawn number; ``[rows]``."""
    cumulative = logits.softmax(-1).double().cumsum(-1)
    last = logits.shape[-1] - 1
    return torch.searchsorted(cumulative, drawn.double()[:, None] * cumulative[:, -1:]).clamp(max=last)[:, 0]
