"""Looks at the candidates of a batch before it is planned: what tells prompts apart, and how sure the policy is.

How sure it is of its next token is known from one greedy token after each prompt. It is asked of the sampling client
that the rollouts of the batch use, and of no other: on SkyRL's JAX server a request of an older client loads older
weights over those under training.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.types import EnvGroupBuilder

import tinker
from knapsack_rl.features.prompts import AUTO, FailedLooks, PromptLooks, greedy_log_prob, resolved
from knapsack_rl.notation import FloatArray
from knapsack_rl.tinker.tasks import question_of

PromptText: TypeAlias = Callable[[EnvGroupBuilder], str]
PromptTokens: TypeAlias = Callable[[EnvGroupBuilder], Any]

logger = logging.getLogger(__name__)

# Seconds after which a look is given up: a request that was lost must not stop the run.
PATIENCE = 600.0


class NextToken:
    """Asks for the log-probability of the most probable next token."""

    def __init__(self, prompt_tokens: PromptTokens | None) -> None:
        """Ask about builders of `ProblemEnv`, or about those whose prompt ``prompt_tokens`` returns."""
        self._prompt_tokens, self._failures = prompt_tokens, FailedLooks("knapsack/look_unknown")

    def can_ask(self, builder: EnvGroupBuilder) -> bool:
        """Whether the tokens of a builder's prompt are known before its environments are made."""
        return self._prompt_tokens is not None or isinstance(builder, ProblemGroupBuilder)

    async def log_probs(self, client: Any, builders: Sequence[EnvGroupBuilder]) -> FloatArray:
        """Ask about the prompt of each builder once, ``[P]``; NaN where it is not known, or the request failed.

        Args:
            client: the sampling client of the rollouts.
            builders: of the candidates.
        """
        found = await asyncio.gather(*(self._ask(client, builder) for builder in builders), return_exceptions=True)
        return self._failures.as_unknown(found)

    async def _ask(self, client: Any, builder: EnvGroupBuilder) -> float:
        prompt = await self._prompt(builder)
        if prompt is None:
            return math.nan
        greedy = tinker.SamplingParams(max_tokens=1, temperature=0.0)
        async with asyncio.timeout(PATIENCE):
            asked = client.sample(prompt=prompt, num_samples=1, sampling_params=greedy)
            # A future of threads until the SDK's sample_async is deprecated, and awaitable since.
            said = await (asked if inspect.isawaitable(asked) else asyncio.wrap_future(asked))
        return greedy_log_prob(said.sequences[0].logprobs)

    async def _prompt(self, builder: EnvGroupBuilder) -> Any:
        """The tokens of a builder's prompt; None if they are not known, or too many for its environment."""
        if self._prompt_tokens is not None:
            given = self._prompt_tokens(builder)
            return given if isinstance(given, tinker.ModelInput) else tinker.ModelInput.from_ints(list(given))
        if not isinstance(builder, ProblemGroupBuilder):
            return None
        first = await builder.env_thunk().initial_observation()
        return first[0] if isinstance(first, tuple) else None


@dataclass(frozen=True)
class Looking:
    """How the prompts of a run are looked at.

    Attributes:
        features: what tells prompts apart: ``text``, a file, or None.
        look: makes features of texts and log-probabilities; None for a rule without them.
        next_token: asks the policy; None if it is not asked.
        lacks: what is less than by default, and why.
    """

    features: str | None
    look: PromptLooks | None
    next_token: NextToken | None
    lacks: tuple[str, ...]


def find_looking(
    features: str | None,
    ask: bool,
    prompt_text: PromptText | None,
    prompt_tokens: PromptTokens | None,
    few: Sequence[EnvGroupBuilder],
) -> Looking:
    """Find out how the prompts of a data set can be looked at.

    Args:
        features, ask, prompt_text, prompt_tokens: fields of `AllocatedDatasetBuilder`.
        few: a few builders of the data set.

    Raises:
        ImportError: features of texts without the library that they need.
        ValueError: a file that holds no features.
    """
    lacks, next_token = [], NextToken(prompt_tokens)
    if features == AUTO:
        known = all(text_of(builder, prompt_text) is not None for builder in few)
        features = resolved(AUTO) if known else None
        if features is None:
            lacks.append(f"no features, {'scikit-learn is missing' if known else 'the texts of prompts are not known'}")
    if not any(map(next_token.can_ask, few)):
        lacks.append("no log odds, the tokens of prompts are not known")
    elif not ask:
        lacks.append("no log odds, ask=False")
    asks = ask and any(map(next_token.can_ask, few))
    return Looking(features, PromptLooks(features), next_token if asks else None, tuple(lacks))


def text_of(builder: EnvGroupBuilder, prompt_text: PromptText | None) -> str | None:
    """The text of a builder's prompt; None where it is not known."""
    return question_of(builder) if prompt_text is None else str(prompt_text(builder))
