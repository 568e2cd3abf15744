"""Settings: names, defaults, error messages; and that verl's real configuration accepts the overrides."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import verl.experimental
from hydra import compose, initialize_config_dir
from world.in_memory import changed, config

import knapsack_rl.verl
from knapsack_rl import AllocationConfig
from knapsack_rl.__main__ import main
from knapsack_rl.config import BUDGET_FIELDS
from knapsack_rl.verl.command import MODES, PAPER, overrides
from knapsack_rl.verl.hooks import CheckConfig
from knapsack_rl.verl.settings import ALIASES, DEFAULTS, ConfigError, Settings, check_config

EXAMPLES = Path(__file__).parents[2] / "examples" / "verl"
GRPO = "algorithm.adv_estimator=grpo"


def test_the_settings_are_those_of_the_core_under_their_names_in_verl() -> None:
    """Every field of the core has one name here, and its value and default arrive."""
    assert ALIASES == {
        "average": "actor_rollout_ref.rollout.n", "min_count": "min_n", "max_count": "max_n",
        "weighting": "group_weighting",
    }  # fmt: skip
    values = {
        "rule": "beta", "average": 6, "pool": 2, "min_count": 0, "max_count": 9, "half_life": 3.5,
        "success_threshold": 0.5, "weighting": "rollout", "min_group": 3,
    }  # fmt: skip
    assert {core.name for core in fields(AllocationConfig)} - set(BUDGET_FIELDS) == values.keys()
    names = {core: ALIASES.get(core, core) for core in values}
    assert list(DEFAULTS) == [*(name for core, name in names.items() if core != "average"), "features", "ask",
                              "keep_successes", "kept_max_age", "prompt_id", "trace_file"]  # fmt: skip
    words = [f"{name if core == 'average' else f'+knapsack.{name}'}={values[core]}" for core, name in names.items()]
    settings = check_config(changed(*words))
    assert settings.allocation == AllocationConfig(**values)
    assert settings.by_name() == {names[core]: value for core, value in values.items()} | {
        "features": None, "ask": False, "keep_successes": False, "kept_max_age": None, "prompt_id": "index",
        "trace_file": "trace.jsonl",
    }  # fmt: skip
    for core, name in names.items():
        said = re.escape(name if core == "average" else f"knapsack.{name}")
        with pytest.raises(ConfigError, match=rf"{said} is 'x'|there is no rule 'x'"):
            Settings.of(changed(f"{name if core == 'average' else f'+knapsack.{name}'}=x"))


def test_defaults_are_those_of_the_core() -> None:
    """But prompts weigh by their rollouts where verl cannot weigh them alike."""
    for core in fields(AllocationConfig):
        if core.name not in ("average", *BUDGET_FIELDS):
            assert DEFAULTS[ALIASES.get(core.name, core.name)] == core.default
    assert check_config(changed()).allocation == AllocationConfig(average=8)
    for word in ("algorithm.adv_estimator=gae", "actor_rollout_ref.actor.policy_loss.loss_mode=clip_cov"):
        assert check_config(changed(word)).allocation == AllocationConfig(average=8, weighting="rollout")
    assert check_config(changed("+knapsack.rule=paper")).allocation.weighting == "rollout"
    assert check_config(changed("actor_rollout_ref.rollout.n=200")).allocation.max_count == 800


def test_the_pool_is_what_the_data_fill() -> None:
    for words, batches, pool, least in (
        ([], 4, 4, 0), ([], 3, 3, 0), ([], 1, 1, 2), ([], 0, 1, 2), (["+knapsack.min_n=0"], 1, 1, 0),
        (["+knapsack.pool=3"], 3, 3, 0), (["+knapsack.rule=uniform"], 1, 1, 2),
    ):  # fmt: skip
        found = check_config(changed(*words)).with_pool_of(batches).allocation
        assert (found.pool, found.min_count) == (pool, least)
    with pytest.raises(ConfigError, match="knapsack.pool=3 asks for 3 batches of candidates a step, .* have 2: use a"):
        check_config(changed("+knapsack.pool=3")).with_pool_of(2)


def test_looks_are_what_the_rule_uses_and_the_engine_gives() -> None:
    for words, features, ask in (
        ([], "text", True),
        (["+knapsack.features=none"], None, True),
        (["+knapsack.ask=False"], "text", False),
        (["+knapsack.rule=beta"], None, False),
        (["+knapsack.rule=uniform", "+knapsack.features=auto", "+knapsack.ask=False"], None, False),
        (["actor_rollout_ref.rollout.name=trtllm"], "text", False),
    ):
        found = check_config(changed(*words))
        assert (found.features, found.ask) == (features, ask)


def test_verl_accepts_a_pool_and_calibrated_beliefs() -> None:
    words = overrides(rule="calibrated", features="text", pool=4, ask=False)
    composed = config(GRPO, "actor_rollout_ref.rollout.n=8", *words)
    settings = check_config(composed)
    assert (settings.features, settings.ask) == ("text", False)
    assert (settings.allocation.pool, settings.allocation.min_count) == (4, 0)
    assert composed.data.train_batch_size == 1024
    assert words[-3:] == ["+knapsack.pool=4", "+knapsack.features=text", "+knapsack.ask=False"]
    assert [word for word in overrides() if word.startswith("+knapsack")] == []


@pytest.mark.parametrize("mode", MODES)
def test_verl_accepts_the_overrides(mode: str) -> None:
    settings = {"rule": "paper", "max_n": 64, "half_life": 12.5, "trace_file": "none", "prompt_id": "content"}
    composed = config(GRPO, "actor_rollout_ref.rollout.n=8", *overrides(mode, **settings))
    expected = DEFAULTS | settings | {"trace_file": None, "pool": 1, "min_n": 2, "group_weighting": "rollout"}
    expected |= {"features": None, "ask": False}  # of no use to this rule
    assert check_config(composed).by_name() == expected | {"actor_rollout_ref.rollout.n": 8}
    assert composed.trainer.v1.trainer_mode == mode


def test_verl_accepts_the_paper_setting() -> None:
    composed = config(*(f"{name}={value}" for name, value in PAPER.items()), *overrides())
    assert check_config(composed).allocation == AllocationConfig(average=8)
    actor, rollout = composed.actor_rollout_ref.actor, composed.actor_rollout_ref.rollout
    assert composed.data.train_batch_size * rollout.n == 2048
    assert composed.data.train_batch_size // actor.ppo_mini_batch_size == 8
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.28, 10.0)
    assert (actor.optim.lr, actor.optim.weight_decay, actor.grad_clip, actor.ppo_epochs) == (1e-6, 0.0, 1.0, 1)
    assert composed.algorithm.rollout_correction.rollout_is_threshold == 2.0


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_verl_accepts_the_launch_scripts(script: Path) -> None:
    words = shlex.split(script.read_text(encoding="utf-8"), comments=True)
    given = [word for word in words[words.index("verl.trainer.main_ppo") + 1 :] if word != "$@" and "$(" not in word]
    given = [word.replace("$DATA", "/data") for word in given if "=" in word]
    check_config(config(*given))


def test_the_script_of_the_paper_is_what_the_command_prints() -> None:
    script = (EXAMPLES / "paper.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    words = shlex.split(script, comments=True)
    printed = [f"{name}={value}" for name, value in PAPER.items()] + overrides(prompt_id="content")
    assert words[-len(printed) - 1 :] == [*printed, "$@"]


def test_the_command_prints_what_overrides_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verl-args", "--max", "16", "--mode", "colocate_async", "--paper"]) == 0
    printed = shlex.split(capsys.readouterr().out.replace("\\\n", " "))
    assert printed == [f"{name}={value}" for name, value in PAPER.items()] + overrides("colocate_async", max_n=16)
    assert "+knapsack.max_n=16" in printed
    assert main(["verl-args", "--pool", "4", "--rule", "calibrated", "--features", "looks.npz", "--no-ask"]) == 0
    printed = shlex.split(capsys.readouterr().out.replace("\\\n", " "))
    assert printed == overrides(pool=4, rule="calibrated", features="looks.npz", ask=False)
    assert main(["verl-args", "--max", "4"]) == 0  # rollout.n, the average, is not known here
    assert capsys.readouterr().out.rstrip().endswith("+knapsack.max_n=4")
    assert main(["verl-args", "--min", "1"]) == 2
    assert "a group of one has no gradient" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["+knapsack.min_count=2"], "knapsack.min_count is not a setting: there are rule, pool, min_n, max_n"),
        (["+knapsack.rule=best"], "there is no rule 'best': choose from calibrated, beta, paper, uniform"),
        (["+knapsack.min_n=1"], "knapsack.min_n is 1: a group of one has no gradient"),
        (["+knapsack.max_n=many"], "knapsack.max_n is 'many': it must be a whole number"),
        (["+knapsack.min_n=2.5"], "knapsack.min_n is 2.5: it must be a whole number"),
        (["+knapsack.half_life=-1"], "knapsack.half_life is -1"),
        (["+knapsack.group_weighting=token"], "knapsack.group_weighting is 'token': choose 'prompt' or 'rollout'"),
        (["+knapsack.prompt_id=uuid"], "choose index or content"),
        (
            ["+knapsack.features=image"],
            "there is no file image in .*: `knapsack-rl features` writes one",
        ),
        (["+knapsack.features=text", "+knapsack.rule=beta"], "features=text has no effect under knapsack.rule=beta"),
        (["+knapsack.ask=True", "+knapsack.rule=paper"], "knapsack.ask=True has no effect under knapsack.rule=paper"),
        (["+knapsack.ask=once"], "knapsack.ask is 'once': choose true or false"),
        (["+knapsack.ask=True", "actor_rollout_ref.rollout.name=trtllm"], "ask=True, and rollout.name=trtllm ignores"),
        (
            ["+knapsack.keep_successes=True", "+knapsack.rule=uniform"],
            "keep_successes=True, and rule=uniform trains on",
        ),
        (
            ["+knapsack.keep_successes=True", "actor_rollout_ref.rollout.calculate_log_probs=False"],
            "keep_successes=True, and rollout.calculate_log_probs is False",
        ),
        (["+knapsack.kept_max_age=0"], "kept_max_age is 0: it counts steps"),
        (["+knapsack.keep_successes=True", "distillation.enabled=True"], "distillation needs a teacher's"),
        (
            ["+knapsack.keep_successes=True", "actor_rollout_ref.rollout.enable_rollout_routing_replay=True"],
            "routing_replay replays the experts",
        ),
        (["+knapsack.pool=0"], "knapsack.pool is 0: it must be a whole number of at least 1"),
        (["+knapsack.pool=2.5"], "knapsack.pool is 2.5: it must be a whole number"),
        (["+knapsack.pool=4", "+knapsack.rule=paper"], "'paper' does not choose among a pool: use knapsack.pool=1"),
        (["+knapsack.pool=8", "+knapsack.min_n=2"], "knapsack.min_n is 2 with knapsack.pool=8"),
        (["+knapsack.max_n=4"], r"rollout.n is 8: the average .* knapsack.max_n \(4\)"),
        (["algorithm.filter_groups.enable=True"], "algorithm.filter_groups replaces finished groups"),
        (["reward.reward_model.enable=True"], "a colocated reward model scores rollouts only after"),
        (["trainer.checkpoint_callback_class=null"], "checkpoint_callback_class is not set, which saves"),
        (["trainer.v1.sampler.custom_sampler.path=null"], "custom_sampler.path is not set, which learns"),
        (["trainer.use_v1=False"], r"legacy trainer RayPPOTrainer \(trainer.use_v1=False\)"),
        (["+async_training.staleness_threshold=0.1"], "legacy trainer fully_async_policy"),
        (["+rollout.nnodes=1"], "legacy trainer one_step_off_policy"),
        (["+knapsack.group_weighting=prompt", "algorithm.adv_estimator=gae"], "cannot weight the advantages of 'gae'"),
        (
            ["+knapsack.group_weighting=prompt", "actor_rollout_ref.actor.policy_loss.loss_mode=clip_cov"],
            "'clip_cov' does not scale with them",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused(words: list[str], said: str) -> None:
    composed = changed(*words)
    with pytest.raises(ConfigError, match=said):
        check_config(composed)
    with pytest.raises(SystemExit, match="knapsack-rl: error: "):
        CheckConfig().on_run_start(composed)


@pytest.mark.parametrize("name", ["one_step_off", "fully_async"])
def test_the_real_configurations_of_legacy_trainers_are_recognised(name: str) -> None:
    """Their settings come on top of verl's; the search path stands for that of verl's repository."""
    folder = Path(next(iter(verl.experimental.__path__))) / f"{name}_policy" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        search = "hydra.searchpath=[pkg://verl.trainer.config]"
        composed = compose(f"{name}_ppo_trainer", [GRPO, search, *overrides()])
    with pytest.raises(SystemExit, match=f"legacy trainer {name}_policy generates the same number"):
        CheckConfig().on_run_start(composed)


LEGACY = {
    "verl.trainer.main_ppo": "RayPPOTrainer",
    "verl.experimental.one_step_off_policy.main_ppo": "one_step_off_policy",
    "verl.experimental.fully_async_policy.fully_async_main": "fully_async_policy",
}


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_legacy_trainers_are_refused_before_ray_starts(tmp_path: Path) -> None:
    search = "hydra.searchpath=[pkg://verl.trainer.config]"
    legacy = [search, "algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=8", "trainer.use_v1=False"]
    for program, name in LEGACY.items():
        command = [sys.executable, "-m", program, *overrides(), *legacy]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 1, program
        assert f"knapsack-rl: error: the legacy trainer {name}" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_reward_model_with_its_own_gpus_is_fine() -> None:
    own = ["reward.reward_model.enable=True", "reward.reward_model.enable_resource_pool=True"]
    check_config(changed(*own))


@pytest.mark.parametrize("installed", ["0.8.0", "0.10.0", "1.0", None])
def test_other_versions_of_verl_are_refused_in_one_sentence(
    installed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=rf"needs verl 0.9.x \(>= 0.9, < 0.10\), .*{installed or 'not installed'}"):
        _ = knapsack_rl.verl.SaveBeliefs


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = knapsack_rl.verl.Trainer
