"""The GPU study on the CPU, with a tiny random Llama: its parts against transformers, and a study from end to end."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.gpu import learner as learner_module
from benchmarks.gpu.learner import Learner
from benchmarks.gpu.llama import Llama, Sampler
from benchmarks.gpu.policy import Machine, SampledPolicy
from benchmarks.gpu.study import Run, Sizes, Study, sampling_error, supervised_start, train
from benchmarks.gpu.weights import digest, join, unpacked
from benchmarks.gpu_study import generated, read
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from knapsack_rl.tasks.tiny_model import make_tokenizer

CPU = torch.device("cpu")
END = 1
PROMPTS, ANSWERS = [[4, 5, 6, 7], [9, 10, 3], [11]], [[8, 9, END], [7, 8, 9, END], [5, 6]]
SIZES = Sizes(
    groups=4, average=4, steps=4, tuning_steps=2, learning_rates=(1e-3,), longest=6, every=2, samples=2, last_samples=4,
    supervised=30, batch=32, supervised_rate=1e-2, target=0.2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers whose three heads share one head of keys, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer("0123456789+=#\n")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder: Path) -> Llama:
    return Llama.load(folder, CPU, torch.float32)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def test_the_model_is_that_of_transformers(model: Llama, theirs: LlamaForCausalLM) -> None:
    losses, row = model.losses(PROMPTS, ANSWERS)
    last, before, logits = model.last_states(PROMPTS)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        log_probs = theirs(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected = -log_probs[range(len(prompt) - 1, len(prompt) + len(answer) - 1), answer]
        torch.testing.assert_close(losses[row == i], expected, atol=1e-5, rtol=1e-5)
        seen = theirs(torch.tensor([prompt]), output_hidden_states=True)
        for ours, other in ((last, seen.hidden_states[-1]), (before, seen.hidden_states[-2]), (logits, seen.logits)):
            torch.testing.assert_close(ours[i], other[0, -1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_samples_have_the_frequencies_of_the_model(model: Llama, theirs: LlamaForCausalLM) -> None:
    sampler = Sampler(model, 4000, 8, 2, END)
    answers = sampler.sample(PROMPTS[:2], [2000, 1999], seed=3)
    assert answers == sampler.sample(PROMPTS[:2], [2000, 1999], seed=3)
    for prompt, drawn in zip(PROMPTS, (answers[:2000], answers[2000:]), strict=False):
        first = np.bincount([answer[0] for answer in drawn], minlength=18) / len(drawn)
        expected = theirs(torch.tensor([prompt])).logits[0, -1].softmax(-1).numpy()
        assert np.abs(first - expected).max() < 5 * np.sqrt(0.25 / len(drawn))
    # The second token depends on the first, through the keys that were kept.
    losses, row = model.losses([PROMPTS[0]] * 2000, answers[:2000])
    own = torch.bincount(row, losses.double(), minlength=2000)
    others = model.losses([PROMPTS[0]] * 2000, answers[1:2001])[0].double()
    assert all(len(answer) == 2 or answer == [END] for answer in answers)
    assert abs(float(own.mean()) - float(others.sum()) / 2000) < 1  # finite, and of the same size


@torch.no_grad()
def test_without_noise_a_sample_is_the_greedy_answer(
    model: Llama, theirs: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda tensor: tensor.fill_(1.0))
    found = Sampler(model, 7, 16, 10, END).sample(PROMPTS, [2, 1, 3], seed=0)
    for prompt, at in zip(PROMPTS, (0, 2, 3), strict=True):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)
        expected = expected[0, len(prompt) :].tolist()
        assert found[at] == expected


def test_more_answers_than_rows_are_refused(model: Llama) -> None:
    with pytest.raises(ValueError, match="5 answers were asked for, and there are 4 rows"):
        Sampler(model, 4, 8, 2, END).sample(PROMPTS, [2, 2, 1], seed=0)


def test_a_step_does_not_depend_on_its_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (6144, 8):
        monkeypatch.setattr(learner_module, "PART", most)
        model = Llama.load(folder, CPU, torch.float32)
        loss = Learner(model, 1e-3).step(PROMPTS, ANSWERS, [1.0, -0.5, 0.0], 9)
        found.append((float(loss), model.masters["0.qkv"].clone()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)


def test_rewards_times_gradients_raise_what_is_right(model: Llama, folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    policy = SampledPolicy(Machine(model, Sampler(model, 8, 16, 4, END), tokenizer), ["1+1=", "2+2="], _sums, 1e-3)
    answers = [[*tokenizer.encode("#2").ids, END], [*tokenizer.encode("#3").ids, END]]
    assert [policy.right(0, answer) for answer in answers] == [True, False]
    assert not policy.right(0, answers[0][:-1])  # cut off
    before = policy.log_probs([0, 0], answers)
    policy.learn([0, 0], answers, torch.tensor([1.0, -1.0]))
    after = policy.log_probs([0, 0], answers)
    assert after[0].sum() > before[0].sum()
    assert after[1].sum() < before[1].sum()
    assert policy.hidden_states([0, 1]).shape == (2, 2 * 48 + 1)


def test_blocks_unpack_to_numbers_times_scales() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 16, (3, 64)).astype(np.uint8)
    halves = numbers.reshape(-1, 2, 16)
    scale, offset = (rng.normal(size=(3, 2)).astype(np.float16) for _ in range(2))
    stored = {
        "a.numbers": (halves[:, 0] | halves[:, 1] << 4).reshape(3, 32),
        "a.scale": scale, "a.offset": offset, "b.plain": np.ones(3, dtype=np.float32),
    }  # fmt: skip
    found = unpacked(stored)
    expected = numbers.reshape(3, 2, 32) * scale[..., None].astype(np.float32) + offset[..., None].astype(np.float32)
    np.testing.assert_array_equal(found["a"], expected.reshape(3, 64))
    assert set(found) == {"a", "b"}


def test_parts_are_joined_and_checked(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    weights = {"a": np.ones(3, dtype=np.float32), "b": np.zeros(2, dtype=np.float32)}
    for number, name in enumerate(weights, start=1):
        part = tmp_path / f"part-{number}"
        part.mkdir()
        save_file({f"{name}.plain": weights[name]}, part / "weights.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "part-1" / name).write_text("{}", encoding="utf-8")
    manifest = tmp_path / "part-1" / "manifest.json"
    manifest.write_text(json.dumps({"parts": 2, "sha256": digest(weights)}), encoding="utf-8")
    assert (join(tmp_path, tmp_path / "model") / "model.safetensors").is_file()
    save_file({"b.plain": np.ones(2, dtype=np.float32)}, tmp_path / "part-2" / "weights.safetensors")
    with pytest.raises(ValueError, match="pack them again"):
        join(tmp_path, tmp_path / "model")
    (tmp_path / "part-2" / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="is missing: 2 parts"):
        join(tmp_path, tmp_path / "model")


def test_sampling_error_is_that_of_many_measurements() -> None:
    rng, true_P = np.random.default_rng(0), np.array([0.1, 0.5, 0.9, 0.3])
    drawn = rng.binomial(8, true_P, size=(4000, 4)) / 8
    errors = [sampling_error(rates, 8) for rates in drawn]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(drawn.mean(axis=1).std(), rel=0.05)


def test_a_study_from_its_start_to_the_table(folder: Path, tmp_path: Path) -> None:
    problems = [(part, a, b) for a in range(5) for b in range(4) for part in ("train", "teach")]
    problems += [("heldout", 6, b) for b in range(4)]
    lines = [
        json.dumps({"part": part, "prompt": f"{a}+{b}=\n", "worked": f"#{a + b}", "source": f"sum-{b // 2}"})
        for part, a, b in problems
    ]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines), encoding="utf-8")
    study = Study(folder, tmp_path / "problems.jsonl", tmp_path, tmp_path / "base", time.time() + 600, SIZES, "cpu", 1)
    supervised_start(study)
    machine, regime = study.machine(), study.regime()
    base = Llama.load(study.base, CPU, torch.float32).masters
    study.write("chosen", best=dict.fromkeys(SIZES.rules, 1e-3))
    for seed in (10, 11):
        for rule in (*SIZES.rules, "calibrated-pool@prompt@step=1/2@kept"):
            machine.model.assign(base)
            assert 0 <= train(study, machine, regime, Run("study", rule, 1e-3, seed, SIZES.steps)) <= 1
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "point", "cut')
    rows = read([tmp_path / "rows.jsonl"])
    points = [row for row in rows if row["kind"] == "point"]
    assert len(points) == 2 * 4 * 2
    assert {row["rollouts"] for row in points if row["step"] == SIZES.steps} == {4 * 4 * 4}
    for row in points:
        assert 0 <= row["mixed_rollouts"] <= 1
        assert {"generate", "learn", "measure", "rule"} <= set(row["seconds"])
    text = generated(rows)
    assert text.count("| `uniform` |") == 1
    assert text.count("| `calibrated-pool@prompt@step=1/2@kept` |") == 1


def _sums(prompt: str, text: str) -> bool:
    return text == f"#{sum(map(int, prompt.strip('=').split('+')))}"
