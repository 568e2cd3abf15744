"""Hidden states as features of prompts: what they are, what computing them leaves alone, how beliefs learn by them."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch

from knapsack_rl.trace import read_trace
from knapsack_rl.trl import KnapsackGRPOTrainer
from knapsack_rl.trl.hidden_states import HiddenStates, hidden_states

PROMPTS = [[4, 5, 3], [6, 3], [7, 8, 9, 10, 3], [3]]


def plain(model: Any, prompt: list[int]) -> np.ndarray:
    """A forward pass of one prompt alone: two layers, and how sure the policy is of its next token."""
    seen = model(input_ids=torch.tensor([prompt]), output_hidden_states=True)
    ends = [layer[0, -1].detach().double().numpy() for layer in (seen.hidden_states[-1], seen.hidden_states[-2])]
    probs = torch.softmax(seen.logits[0, -1].detach().double(), 0).numpy()
    best = np.clip(probs.max(), 0.01, 0.99)
    confidence = np.array([-(probs * np.log(probs)).sum(), np.log(best / (1 - best))])
    return np.concatenate([*(end / np.sqrt(np.mean(end**2)) for end in ends), confidence])


@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_they_are_those_of_a_plain_forward_pass(batch_size: int) -> None:
    model = small.model().eval()
    found = hidden_states(model, PROMPTS, batch_size, nullcontext)
    assert found.shape == (4, 34)
    np.testing.assert_allclose(found.numpy(), [plain(model, prompt) for prompt in PROMPTS], rtol=1e-4, atol=1e-5)


def test_nothing_else_changes() -> None:
    """Dropout is off for the while, though on before and after; one module in eval mode stays in it; no randomness."""
    model = small.model()
    model.config.attention_dropout = model.model.layers[0].self_attn.attention_dropout = 0.9
    model.gradient_checkpointing_enable()
    model.train()
    model.lm_head.eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    found = hidden_states(model, PROMPTS, 2, nullcontext)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.requires_grad
    np.testing.assert_allclose(found[2].numpy(), plain(model.eval(), PROMPTS[2]), rtol=1e-4, atol=1e-5)


class Looking(KnapsackGRPOTrainer):
    """Remembers what the beliefs were told, and compares it with a plain forward pass of the policy of that moment."""

    def _look(self, prompt_ids: list[str], rows: list[dict[str, Any]]) -> None:
        super()._look(prompt_ids, rows)
        self.model.eval()
        for prompt_id, row in zip(prompt_ids, rows, strict=True):
            tokens = self._tokenize_prompts([row["prompt"]])[0][0]
            look = np.concatenate(self._looks([prompt_id]), axis=1)[0]
            np.testing.assert_allclose(look, plain(self.model, tokens), rtol=1e-3, atol=1e-4)
            assert self.processing_class.decode(tokens).endswith("=")  # the chat template's prompt for an answer
        self.model.train()
        self.looked = getattr(self, "looked", 0) + 1


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_beliefs_are_told_the_hidden_states_of_the_moment(
    tmp_path: Path, chat: bool, lora: bool, checkpointing: bool
) -> None:
    from peft import LoraConfig

    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.5)
    trainer = small.knapsack(
        tmp_path, data=small.dataset(chat=chat), allocation="calibrated", candidate_pool=2, trainer_class=Looking,
        arguments={"peft_config": adapters} if lora else {}, max_steps=3, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    assert trainer.looked == trainer.state.global_step == 3
    assert trainer.allocator.beliefs.look.weights_F.size == 2 * 16 + 1
    assert trainer.allocator.beliefs.weighing.weights_F.size == 7 + 4 * 2


def test_forecasts_go_by_them(tmp_path: Path) -> None:
    """After the first outcomes, prompts never seen before are told apart by their looks, and only by these."""
    for features, apart in (("hidden_states", True), ("none", False)):
        folder = tmp_path / features
        small.knapsack(folder, allocation="calibrated", belief_features=features, max_steps=2)
        plan = read_trace(folder / "trace.jsonl").steps[1].plan
        assert not plan.seen_P.any()
        assert (len(set(plan.success_rates_P.tolist())) == 4) == apart


def test_looking_leaves_the_rollouts_alone(tmp_path: Path) -> None:
    """The first plan is uniform whatever is believed, so the first rollouts must be the same with and without."""
    first = []
    for allocation in ("calibrated", "posterior"):
        small.knapsack(tmp_path / allocation, allocation=allocation, max_steps=1)
        first.append(read_trace(tmp_path / allocation / "trace.jsonl").steps[0])
    assert first[0].plan.counts_P.tolist() == first[1].plan.counts_P.tolist()
    assert first[0].outcomes.rewards_PG.tolist() == first[1].outcomes.rewards_PG.tolist()


def test_only_candidates_of_the_step_are_known() -> None:
    looks = HiddenStates()
    looks.fill(["a", "b"], np.array([[1.0, 5.0, 6.0], [2.0, 7.0, 8.0]]))
    found = looks(["b", "a"])
    assert found.features_P_F.tolist() == [[2.0], [1.0]]
    assert found.confidence_P_C.tolist() == [[7.0, 8.0], [5.0, 6.0]]
    with pytest.raises(ValueError, match="hidden states of prompt 'c' are not known"):
        looks(["a", "c"])


def test_prompts_that_environments_complete_are_known_by_their_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Acting(KnapsackGRPOTrainer):
        def _can_look(self) -> bool:
            self.environment_factories = {None: object}
            return super()._can_look()

    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        trainer = small.knapsack(tmp_path, train=False, allocation="calibrated", trainer_class=Acting)
        small.knapsack(tmp_path, train=False, allocation="posterior", trainer_class=Acting)  # does not care
    assert trainer.allocator.beliefs.features is None
    assert caplog.text.count("'hidden_states' cannot be used, because environments complete the prompts") == 1
