"""How sure the policy is of its next token, asked of verl's own engine: one greedy token for each candidate.

The calls go through the client that verl's agents use, so they meet the present weights, and their prefill is what the
rollouts of a chosen prompt find in the engine's prefix cache. They are made by the thread that submits the batch: verl
closes and opens its engines in that thread, so a call never waits for a closed one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from verl.utils.config import omega_conf_to_dataclass
from verl.utils.ray_utils import auto_await
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from knapsack_rl.features.prompts import FailedLooks, greedy_log_prob
from knapsack_rl.notation import FloatArray

logger = logging.getLogger(__name__)

# At temperature 0 engines return the log-probability of unscaled logits.
GREEDY: Mapping[str, Any] = {
    "max_tokens": 1, "temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True,
}  # fmt: skip
MOST_AT_ONCE = 256
# Seconds after which the looks of a step that have not come are given up.
PATIENCE = 600.0


class NextToken:
    """Asks for the log-probability of the most probable next token.

    Attributes:
        client: verl's ``LLMServerClient``.
        longest: tokens of a prompt that the rollouts keep, its last ones.
    """

    def __init__(self, config: Any, client: Any) -> None:
        """Make the builder of tokens that verl's agents use, so that a look reads what a rollout will read.

        Args:
            config: verl's whole configuration.
            client: of its engine.
        """
        self.client, self.longest = client, int(config.actor_rollout_ref.rollout.prompt_length)
        model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
        template = model.get("custom_chat_template", None)
        for each in (model.processor, model.tokenizer) if template is not None else ():
            if each is not None:
                each.chat_template = template
        kind = getattr(model.hf_config, "model_type", None)
        self._builder = create_continuous_token_builder(
            model.tokenizer,
            hf_model_type=kind if isinstance(kind, str) else None,
            chat_template_kwargs=config.data.get("apply_chat_template_kwargs", {}),
            mm_processor_kwargs=config.data.get("mm_processor_kwargs", {}),
            processor=model.processor,
        )
        self._failures = FailedLooks("knapsack/look_unknown")

    def log_probs(self, prompts: Sequence[Any]) -> FloatArray:
        """Ask for each prompt once, ``[P]``; NaN where the call failed or the prompt is not of text alone.

        Args:
            prompts: chat messages, as verl's data set gives them.
        """
        found: list[float | BaseException] = auto_await(self._ask_all)(prompts)
        return self._failures.as_unknown(found)

    async def _ask_all(self, prompts: Sequence[Any]) -> list[float | BaseException]:
        gate = asyncio.Semaphore(MOST_AT_ONCE)

        async def ask(messages: Any) -> float:
            if not _is_text(messages):
                return math.nan
            async with gate:
                tokens = self._builder.build_initial_tokens(list(messages))[-self.longest :]
                said = await self.client.generate(uuid4().hex, prompt_ids=tokens, sampling_params=dict(GREEDY))
            return greedy_log_prob(said.log_probs)

        tasks = [asyncio.ensure_future(ask(messages)) for messages in prompts]
        late = (await asyncio.wait(tasks, timeout=PATIENCE))[1] if tasks else set()
        for task in late:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)


def _is_text(messages: Any) -> bool:
    """Whether all contents are text: the look of a prompt with images would need their processor."""
    return all(isinstance(message.get("content"), str) for message in messages)
