"""Hidden states as features of prompts: what they are, what computing them leaves alone, how beliefs learn by them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from transformers import LlamaForCausalLM

from knapsack_rl import CalibratedBeliefs, Outcomes, PromptFeatures
from knapsack_rl.beliefs.looks import scaled
from knapsack_rl.features import policy
from knapsack_rl.features.policy import as_prompt_features, hidden_states
from knapsack_rl.notation import FloatArray
from knapsack_rl.trace import read_trace
from knapsack_rl.trl import KnapsackGRPOTrainer
from knapsack_rl.trl.rows import Candidate

PROMPTS = [[4, 5, 3], [6, 3], [7, 8, 9, 10, 3], [3]]


def plain(model: Any, prompt: list[int]) -> np.ndarray:
    """A forward pass of one prompt alone: two layers, and the log-probability of the most probable next token."""
    seen = model(input_ids=torch.tensor([prompt]), output_hidden_states=True)
    ends = [layer[0, -1].detach().double().numpy() for layer in (seen.hidden_states[-1], seen.hidden_states[-2])]
    probs = torch.softmax(seen.logits[0, -1].detach().double(), 0).numpy()
    return np.concatenate([*(end / np.sqrt(np.mean(end**2)) for end in ends), [np.log(probs.max())]])


@pytest.mark.parametrize(("tokens", "passes"), [(1, 4), (9, 2), (1000, 1)])
def test_they_are_those_of_a_plain_forward_pass(tokens: int, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many prompts share a pass: one, some of unequal length, all."""
    monkeypatch.setattr(policy.batches_of, "__defaults__", (tokens, 1000, 10.0, 0))
    model = small.model().eval()
    sizes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, args, given: sizes.append(given["input_ids"].shape), with_kwargs=True)
    found = hidden_states(model, PROMPTS)
    assert found.shape == (4, 33)
    assert len(sizes) == passes
    np.testing.assert_allclose(found.numpy(), [plain(model, prompt) for prompt in PROMPTS], rtol=1e-4, atol=1e-5)


def test_processes_with_fewer_prompts_make_as_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharded weights need every process in each pass; the surplus changes nothing."""
    monkeypatch.setattr(policy.batches_of, "__defaults__", (9, 1000, 10.0, 0))
    model, asked = small.model().eval(), []
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    found = hidden_states(model, PROMPTS, passes=lambda own: asked.append(own) or 7)
    assert (asked, len(passes)) == ([2], 7)
    torch.testing.assert_close(found, hidden_states(model, PROMPTS), rtol=0, atol=0)


def test_nothing_else_changes() -> None:
    """Dropout is off for the while, though on before and after; one module in eval mode stays in it; no randomness."""
    model = small.model()
    model.config.attention_dropout = model.model.layers[0].self_attn.attention_dropout = 0.9
    model.gradient_checkpointing_enable()
    model.train()
    model.lm_head.eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    found = hidden_states(model, PROMPTS)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.requires_grad
    np.testing.assert_allclose(found[2].numpy(), plain(model.eval(), PROMPTS[2]), rtol=1e-4, atol=1e-5)


class Looking(KnapsackGRPOTrainer):
    """Compares every plan's look with plain passes: states of the first look at a prompt, confidence of the moment."""

    def _prompt_features(self, offered: list[Candidate]) -> PromptFeatures | None:
        features = super()._prompt_features(offered)
        assert features is not None
        self.model.eval()
        self.first: dict[str, FloatArray] = getattr(self, "first", {})
        for state, confidence, candidate in zip(*features, offered, strict=True):
            tokens = self._tokenize_prompts([candidate.prompt])[0][0]
            assert self.processing_class.decode(tokens).endswith("=")  # the chat template's prompt for an answer
            found = plain(self.model, tokens)
            first = self.first.setdefault(candidate.prompt_id, scaled(found[None, :-1])[0])
            np.testing.assert_allclose(state, first, atol=2e-3)  # 16 bits
            probability = np.clip(np.exp(found[-1]), 0.01, 0.99)
            np.testing.assert_allclose(confidence, np.log(probability / (1 - probability)), atol=0.006)
        self.model.train()
        self.looked = getattr(self, "looked", 0) + 1
        return features


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_plans_are_made_with_the_first_hidden_states_and_the_confidence_of_the_moment(
    tmp_path: Path, chat: bool, lora: bool, checkpointing: bool
) -> None:
    from peft import LoraConfig

    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.5)
    trainer = small.knapsack(
        tmp_path, data=small.dataset(chat=chat), rule="calibrated", pool=2, trainer_class=Looking,
        arguments={"peft_config": adapters} if lora else {}, max_steps=3, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    assert trainer.looked == trainer.state.global_step == 3
    assert trainer.allocator.beliefs.feature_model.weights_F.size == 2 * 16 + 1
    assert trainer.allocator.beliefs.combiner.weights_F.size == 7 + 4


def test_forecasts_go_by_them(tmp_path: Path) -> None:
    """After the first outcomes, prompts never seen before are told apart by their looks, and only by these."""
    for features, apart in (("hidden_states", True), ("none", False)):
        folder = tmp_path / features
        small.knapsack(folder, rule="calibrated", features=features, max_steps=2)
        plan = read_trace(folder / "trace.jsonl").steps[1].plan
        assert not plan.seen_P.any()
        assert (len(set(plan.success_rates_P.tolist())) == 4) == apart


def test_looking_leaves_the_rollouts_alone(tmp_path: Path) -> None:
    """The first plan is uniform whatever is believed, so the first rollouts must be the same with and without."""
    first = []
    for rule in ("calibrated", "beta"):
        small.knapsack(tmp_path / rule, rule=rule, max_steps=1)
        first.append(read_trace(tmp_path / rule / "trace.jsonl").steps[0])
    assert first[0].plan.counts_P.tolist() == first[1].plan.counts_P.tolist()
    assert first[0].outcomes.rewards_PG.tolist() == first[1].outcomes.rewards_PG.tolist()


def test_outcomes_are_learned_with_the_features_of_their_plan(tmp_path: Path) -> None:
    rows = np.array([[1.0, 5.0, 0.0], [2.0, 7.0, -9.0]])
    found = as_prompt_features(rows).take(np.array([1, 0]))
    assert found.features_P_F.tolist() == [[2.0, 7.0], [1.0, 5.0]]
    assert found.confidence_P_C.tolist() == [[-4.6], [4.6]]
    learned: list[Outcomes] = []

    class Listening(CalibratedBeliefs):
        def observe(self, outcomes: Outcomes) -> None:
            learned.append(outcomes)
            super().observe(outcomes)

    trainer = small.knapsack(tmp_path, train=False, rule="calibrated", max_steps=3)
    trainer.session.allocator.beliefs = Listening()
    trainer.train()
    assert len(learned) == 3
    for outcomes in learned:
        assert outcomes.features is not None
        assert len(outcomes.features.features_P_F) == len(outcomes.prompt_ids)
        assert len(np.unique(outcomes.features.features_P_F, axis=0)) == len(set(outcomes.prompt_ids))


def test_prompts_that_environments_complete_are_known_by_their_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Acting(KnapsackGRPOTrainer):
        def _can_read_hidden_states(self) -> bool:
            self.environment_factories = {None: object}
            return super()._can_read_hidden_states()

    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        trainer = small.knapsack(tmp_path, train=False, rule="calibrated", trainer_class=Acting)
        small.knapsack(tmp_path, train=False, rule="beta", trainer_class=Acting)  # does not care
    assert not trainer._uses_hidden_states
    assert caplog.text.count("hidden states cannot be used as features, because environments complete the prompts") == 1


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"])
def test_virtual_tokens_shift_no_position(kind: str) -> None:
    """Against each prompt by itself, whose last position needs no count."""
    import peft

    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=5)
    tuned = peft.get_peft_model(small.model(), config).eval()
    found = hidden_states(tuned, PROMPTS).numpy()
    np.testing.assert_allclose(found, [plain(tuned, prompt) for prompt in PROMPTS], rtol=1e-4, atol=1e-5)
    assert len(np.unique(found, axis=0)) == len(PROMPTS)


def test_a_model_that_ignores_logits_to_keep() -> None:
    class Ignores(LlamaForCausalLM):
        def forward(self, *args: Any, logits_to_keep: Any = None, **given: Any) -> Any:
            return super().forward(*args, **given)

    model = small.model().eval()
    expected = hidden_states(model, PROMPTS)
    model.__class__ = Ignores
    torch.testing.assert_close(hidden_states(model, PROMPTS), expected)


@pytest.mark.parametrize("lacks", ["hidden states", "positions", "arguments"])
def test_a_model_that_does_not_show_them_is_trained_without(
    tmp_path: Path, lacks: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent(LlamaForCausalLM):
        def forward(self, *args: Any, **given: Any) -> Any:
            if not given.get("output_hidden_states"):
                return super().forward(*args, **given)
            if lacks == "arguments":
                raise TypeError("forward() got an unexpected keyword argument 'output_hidden_states'")
            seen = super().forward(*args, **given)
            if lacks == "hidden states":
                seen.hidden_states = None
            else:
                seen.logits = seen.logits[:, :0]
            return seen

    model = small.model()
    model.__class__ = Silent
    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        trainer = small.knapsack(tmp_path, rule="calibrated", arguments={"model": model})
    assert trainer.state.global_step == 3
    assert caplog.text.count("cannot be used as features, because of the model's forward pass") == 1


def test_prompt_tuning_is_trained(tmp_path: Path) -> None:
    from peft import PromptTuningConfig

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trainer = small.knapsack(tmp_path, rule="calibrated", arguments={"peft_config": config}, max_steps=2)
    assert trainer._uses_hidden_states
    assert trainer.state.global_step == 2
