"""The example runs, with the embedded model in place of one that needs a GPU."""

from __future__ import annotations

import ast
import functools
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import patched  # before our own modules
import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import knapsack_rl.trl
import unsloth
from knapsack_rl.tasks.models import warm_started
from knapsack_rl.tasks.recipe import Recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "05_unsloth.py"
pytestmark = pytest.mark.timeout(900)


def from_pretrained(name: str, max_seq_length: int) -> tuple[Any, Any]:
    folder = warm_started(Recipe(hidden=64, layers=2, intermediate=128, steps=100))
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def with_adapters(model: Any, **given: Any) -> Any:
    return patched.of_unsloth(get_peft_model(model, LoraConfig(**given, task_type="CAUSAL_LM")))


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KNAPSACK_RL_CACHE", str(tmp_path))
    stand_in = SimpleNamespace(from_pretrained=from_pretrained, get_peft_model=with_adapters)
    monkeypatch.setattr(unsloth, "FastLanguageModel", stand_in)
    # Unsloth's default optimizer needs a GPU.
    on_cpu = functools.partial(knapsack_rl.trl.KnapsackGRPOConfig, use_cpu=True, bf16=False, optim="adamw_torch")
    monkeypatch.setattr(knapsack_rl.trl, "KnapsackGRPOConfig", on_cpu, raising=False)
    runpy.run_path(str(EXAMPLE))
    printed = capsys.readouterr().out
    plans = [ast.literal_eval(counts) for counts in re.findall(r"^ +\d+: (\[.*\])$", printed, re.MULTILINE)]
    assert len(plans) == 6
    assert all(sum(counts) == 64 for counts in plans)
    assert any(len(set(counts)) > 1 for counts in plans), "every group had the same size"
