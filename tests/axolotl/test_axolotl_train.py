"""The command `axolotl train` on a CPU: the example, killed and resumed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from knapsack_rl.trace import read_trace

EXAMPLE = Path(__file__).parents[2] / "examples" / "axolotl"
REWARD = "knapsack_rl.tasks.rewards.exact_match"
# Kills the process while it scores the batch after the first checkpoint.
KILLER = f"""
import os, signal
from {REWARD.rpartition(".")[0]} import exact_match

def reward(prompts, completions, trainer_state, **columns):
    if "KILL" in os.environ and trainer_state.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return exact_match(prompts=prompts, completions=completions, **columns)
"""

pytestmark = pytest.mark.timeout(1200)


def run(folder: Path, *command: str, kill: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KNAPSACK_RL_CACHE": str(folder / "cache"), "PYTHONPATH": str(folder)}
    environment |= {"KILL": "1"} if kill else {}
    scripts = Path(sys.executable).parent
    call = [scripts / command[0], *command[1:]]
    return subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def train(folder: Path, *options: str, kill: bool = False) -> subprocess.CompletedProcess[str]:
    return run(folder, "axolotl", "train", "grpo.yaml", "--launcher", "python", *options, kill=kill)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, with its model and its prompts, and a reward that can kill."""
    folder = tmp_path_factory.mktemp("axolotl") / "prepared"
    shutil.copytree(EXAMPLE, folder)
    done = run(folder, "python", "prepare.py")
    assert done.returncode == 0, done.stderr
    (folder / "killer.py").write_text(KILLER, encoding="utf-8")
    text = (folder / "grpo.yaml").read_text(encoding="utf-8")
    assert REWARD in text
    (folder / "grpo.yaml").write_text(text.replace(REWARD, "killer.reward"), encoding="utf-8")
    return folder


def counts(folder: Path) -> list[list[int]]:
    return [step.plan.counts_P.tolist() for step in read_trace(folder / "out" / "trace.jsonl").steps]


def test_the_example_trains_is_killed_and_resumed(prepared: Path) -> None:
    whole, killed = prepared.with_name("whole"), prepared.with_name("killed")
    for folder in (whole, killed):
        shutil.copytree(prepared, folder)
    done = train(whole)
    assert done.returncode == 0, done.stderr[-5000:]
    plans = counts(whole)
    assert len(plans) == 8
    assert all(len(each) == 32 and sum(each) == 64 for each in plans), "a step has other candidates or another budget"
    assert any(len(set(each) - {0}) > 1 for each in plans), "every group had the same size"
    assert "knapsack/frac_prompts_mixed" in done.stdout + done.stderr
    assert {each.name for each in (whole / "out").glob("checkpoint-*/knapsack_rl.npz")} == {"knapsack_rl.npz"}

    assert train(killed, kill=True).returncode == -signal.SIGKILL
    assert counts(killed) == plans[: len(counts(killed))]
    assert len(counts(killed)) < 8
    done = train(killed, "--resume-from-checkpoint", "out/checkpoint-4")
    assert done.returncode == 0, done.stderr[-5000:]
    assert counts(killed) == plans
    weights = [(folder / "out" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
    assert weights[0] != (prepared / "model" / "model.safetensors").read_bytes()


# A trainer of the user's own, which says how it aggregates rewards, and a second reward.
GDPO = """
from killer import reward
from knapsack_rl.axolotl.trainer import KnapsackGRPOTrainer

def short(completions, **_):
    return [-float(len(completion)) for completion in completions]

class Trainer(KnapsackGRPOTrainer):
    def _replace_advantages(self, batch, advantages, plan):
        super()._replace_advantages(batch, advantages, plan)
        print("AGGREGATED BY", self.multi_objective_aggregation, bool(batch["advantages"].any()))
"""


def test_gdpo_trains_with_uneven_groups(prepared: Path) -> None:
    folder = prepared.with_name("gdpo")
    shutil.copytree(prepared, folder)
    (folder / "mine.py").write_text(GDPO, encoding="utf-8")
    text = (folder / "grpo.yaml").read_text(encoding="utf-8")
    assert "rl: grpo" in text
    text = text.replace("rl: grpo", "rl: gdpo\ntrainer_cls: mine.Trainer").replace(
        "killer.reward", "mine.reward, mine.short"
    )
    (folder / "grpo.yaml").write_text(text, encoding="utf-8")
    done = train(folder)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.count("AGGREGATED BY normalize_then_sum True") == 8
    assert all(sum(each) == 64 for each in counts(folder))
    assert any(len(set(each) - {0}) > 1 for each in counts(folder)), "every group had the same size"


def test_an_unknown_field_ends_the_command_before_a_model_is_loaded(prepared: Path) -> None:
    folder = prepared.with_name("refused")
    shutil.copytree(prepared, folder)
    text = (folder / "grpo.yaml").read_text(encoding="utf-8")
    (folder / "grpo.yaml").write_text(text.replace("  pool: 4", "  poool: 4"), encoding="utf-8")
    ended = train(folder)
    assert ended.returncode != 0
    assert "ValueError: knapsack has no field 'poool': choose from" in ended.stderr
    assert "Loading weights" not in ended.stderr
