"""`knapsack-rl lab` from the command line, on a model of three thousand weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from knapsack_arena.compare.metrics import SCHEMA
from knapsack_arena.compare.trials import run_trial
from knapsack_arena.lab.environment import LanguageModelEnvironment, LookName, Loss
from knapsack_arena.lab.options import Options, split_rule
from knapsack_arena.lab.trials import find_regime, lab_trial
from knapsack_arena.registry import REGISTRY, RuleContext
from knapsack_rl.__main__ import main
from knapsack_rl.beliefs.looks import scaled
from knapsack_rl.features.text import TextFeatures
from knapsack_rl.notation import PromptFeatures

TINY = f"{Path(__file__).with_name('tiny_regimes.py')}:tiny"
RAISES = "def raises(forecast, budget, low, high):\n    raise KeyError('[bold]nothing')\n"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Base models of these tests lie in a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNAPSACK_RL_CACHE", str(tmp_path_factory.mktemp("cache")))
        find_regime.cache_clear()
        yield
        find_regime.cache_clear()


def _words(out: Path, rules: str, seeds: int = 2) -> list[str]:
    words = ["lab", "--rules", rules, "--regimes", TINY, "--seeds", str(seeds), "--steps", "6"]
    return [*words, "--workers", "1", "--output", str(out)]


def test_from_end_to_end_with_a_failure_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(RAISES)
    out = tmp_path / "out"
    rules = f"calibrated-pool@prompt,oracle-pool,{mine}:raises@unscaled"
    assert main(_words(out, rules, seeds=1)) == 1
    shown = capsys.readouterr().out
    assert "base model" in shown
    assert f"failed: {mine}:raises@unscaled on {TINY}, seed 10: KeyError: '[bold]nothing' (mine.py:2)" in shown
    assert "Share of the lead of oracle-pool over uniform" in shown
    _assert_complete(out)

    # After a repair, only what is missing runs.
    kept = {path: path.stat().st_mtime_ns for path in out.glob("trials/*.parquet")}
    assert len(kept) == 3
    mine.write_text("from knapsack_rl.rules import expected_value as raises\n")
    assert main(_words(out, rules, seeds=1)) == 0
    assert "3 of 4 trials were finished before and are kept" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    first = pl.read_parquet(out / "results.parquet")
    assert main(_words(out, rules, seeds=1)) == 0
    assert "4 of 4 trials were finished before and are kept" in capsys.readouterr().out
    assert pl.read_parquet(out / "results.parquet").equals(first)


def _assert_complete(out: Path) -> None:
    results = pl.read_parquet(out / "results.parquet")
    assert dict(results.schema) == SCHEMA
    assert results["rule"].unique(maintain_order=True).to_list() == ["uniform", "calibrated-pool@prompt", "oracle-pool"]
    assert set(results["preset"]) == {TINY}
    assert results["value"].is_finite().all()
    metrics = set(results["metric"].unique())
    assert {
        "held_out_p",
        "hard_half_p",
        "value_share",
        "belief_error",
        "log_score",
        "overhead",
        "zero_gradient_rollouts",
        "area",
    } <= metrics
    points = results.filter(pl.col("metric") == "held_out_p", pl.col("rule") == "uniform").sort("point")
    assert points["rollouts"].to_list() == [16 * step for step in range(7)]
    oracle = results.filter(pl.col("rule") == "oracle-pool")
    assert oracle.filter(pl.col("metric") == "belief_error")["value"].max() < 1e-9
    assert oracle.filter(pl.col("metric") == "value_share")["value"].to_list() == pytest.approx([1.0, 1.0])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "regime" in page
    assert "held-out success rate" in page
    assert "simulated" not in page
    assert "knapsack-rl" in page


def test_a_trial_depends_on_its_seed_and_its_loss() -> None:
    def numbers(rule: str, seed: int) -> pl.DataFrame:
        timed = ("seconds", "overhead", "prefill", "measuring")
        rows = run_trial(lab_trial(rule, TINY, seed, steps=3))
        return rows.filter(~pl.col("metric").is_in(timed)).drop("rule", "seed")

    find_regime(TINY).base_model()
    same = numbers("paper", 0)
    assert same.equals(numbers("paper", 0))
    assert same.equals(numbers("paper@rollout", 0))
    assert not same.equals(numbers("paper", 1))
    assert lab_trial("uniform", TINY, 0).key != lab_trial("uniform@prompt", TINY, 0).key


def test_a_trial_has_the_sizes_of_its_regime() -> None:
    settings = lab_trial("uniform", TINY, 0).settings
    assert (settings.prompts, settings.groups, settings.average, settings.steps) == (64, 4, 4, 3)
    assert lab_trial("uniform", TINY, 0, steps=7).settings.steps == 7


def test_the_loss_behind_a_rule() -> None:
    assert split_rule("uniform") == ("uniform", Options())
    assert split_rule("uniform@prompt") == ("uniform", Options(Loss("prompt")))
    assert split_rule("a@b.py:rule@unscaled") == ("a@b.py:rule", Options(Loss(scale=None)))
    assert split_rule("a@b.py:rule") == ("a@b.py:rule", Options())
    assert split_rule("uniform@prompt-unscaled")[1].loss == Loss("prompt", scale=None)
    name, options = split_rule("paper@prompt@lr=2@step=1/4@priced@ratio")
    assert (name, options.learning_rate, options.divisor, options.priced) == ("paper", 2.0, 4, True)
    assert options.loss == Loss("prompt", kept="successes", ratio=True)
    assert split_rule("uniform@kept-failures")[1] == Options(Loss(kept="failures"))
    assert split_rule("calibrated-pool@look=texts") == ("calibrated-pool", Options(look="texts"))
    assert split_rule("uniform@kept")[1] == Options(Loss(kept="successes"))


@pytest.mark.parametrize("look", ["policy", "base", "texts"])
def test_what_tells_prompts_apart(look: LookName) -> None:
    """Only the present confidence changes with the policy, unless a prompt is seen for the first time."""
    regime = find_regime(TINY)
    environment = LanguageModelEnvironment(regime, 0, look=look)
    early, late = environment.prompt_ids[:4], environment.prompt_ids[4:8]
    before = environment.hidden_states(early)
    base = environment.policy.hidden_states(range(8))
    for parameter in environment.policy.model.parameters():  # type: ignore[attr-defined]
        parameter.data.mul_(1.5)
    after, first = environment.hidden_states(early), environment.hidden_states(late)
    assert np.array_equal(before.features_P_F, after.features_P_F)
    assert (before.confidence_P_C != after.confidence_P_C).any()
    expected = {
        "policy": environment.policy.hidden_states(range(4, 8))[:, :-1],
        "base": base[4:, :-1],
        "texts": TextFeatures()(late).features_P_F,
    }
    assert np.allclose(first.features_P_F, scaled(expected[look]), atol=1e-2)
    for other in set(expected) - {look}:
        assert expected[other].shape != expected[look].shape or not np.allclose(
            first.features_P_F, scaled(expected[other]), atol=1e-2
        )


def test_log_odds_alone_tell_prompts_apart_by_nothing_else() -> None:
    found = {look: LanguageModelEnvironment(find_regime(TINY), 0, look=look) for look in ("policy", "odds")}
    policy, odds = (each.hidden_states(each.prompt_ids[:4]) for each in found.values())
    assert split_rule("calibrated-pool@look=odds")[1] == Options(look="odds")
    assert odds.features_P_F.shape == (4, 0)
    assert np.array_equal(odds.confidence_P_C, policy.confidence_P_C)


@pytest.mark.parametrize("option", ["lr=0", "lr=fast", "step=0.5", "step=1/0", "lr=nan", "lr=-1"])
def test_an_option_out_of_range_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=re.escape(option)):
        split_rule(f"uniform@{option}")


def test_a_step_of_a_share_needs_a_divisor_of_the_groups() -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        split_rule("uniform@step=1/3")[1].groups(32)
    assert split_rule("uniform@step=1/4")[1].groups(32) == 8


def test_rules_are_given_true_rates_and_hidden_states(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[RuleContext] = []
    uniform = REGISTRY["uniform"]
    monkeypatch.setitem(REGISTRY, "uniform", lambda context: given.append(context) or uniform(context))  # type: ignore[func-returns-value]
    run_trial(lab_trial("uniform", TINY, 0, steps=1))
    (context,) = given
    ids = [item.prompt for item in find_regime(TINY).train[:3]]
    assert context.features is not None
    assert context.truth is not None
    features = context.features(ids)
    assert isinstance(features, PromptFeatures)
    assert (features.features_P_F.shape, features.confidence_P_C.shape) == ((3, 32), (3, 1))
    assert context.truth(ids).shape == (3,)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--rules", "unknown"], "there is no rule 'unknown': choose from uniform"),
        (["--rules", "dapo@moon"], "there is no rule 'dapo@moon': choose from uniform"),
        (["--rules", "dapo,dapo"], "name at least one rule, and none twice: dapo, dapo"),
        (
            ["--regimes", "moon"],
            "there is no regime 'moon': choose from skills, keys, tail, long, hopeless, smollm2, or give one",
        ),
        (["--regimes", "gone.py:tiny"], "there is no file gone.py"),
        (["--regimes", f"{TINY}:tiny,{TINY}"], "there is no"),
        (["--regimes", TINY.replace(":tiny", ":RECIPE")], f"{TINY.replace(':tiny', ':RECIPE')} is Recipe("),
        (["--regimes", f"{TINY},{TINY}"], "name at least one regime, and none twice"),
        (["--seeds", "0"], "name at least one seed"),
        (["--steps", "0"], "steps is 0: use at least 1"),
        (["--workers", "0"], "0 workers run nothing: use at least 1"),
    ],
)
def test_a_mistake_is_one_clear_line(
    words: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*_words(tmp_path / "out", "dapo"), *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"knapsack-rl: error: {error}")
    assert len(shown.err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.parquet"))
