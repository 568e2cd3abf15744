"""The report: its page, its figures, and its conclusions."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from knapsack_rl.__main__ import main
from knapsack_rl.config import RuleName
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.report import write_report
from knapsack_rl.trace import TraceWriter, read_trace
from knapsack_rl.train.progress import print_summary
from synthetic_run import record_run

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg

from knapsack_rl.report.charts import binned, smooth
from knapsack_rl.report.runs import flat_settings, make_runs
from knapsack_rl.report.svg import END_LABELS, label_ends, panel, spread, style
from knapsack_rl.report.tables import _to_extremes, headline, transitions
from knapsack_rl.report.verdict import verdict

RULES: tuple[RuleName, ...] = ("uniform", "beta", "paper")
VOID = {"meta", "br", "img", "path", "use", "image", "rect", "circle", "line"}


class Page(HTMLParser):
    """The elements of a page, and whether they are properly nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == [], "elements left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short runs of three rules, ``<rule>/trace.jsonl``."""
    folder = tmp_path_factory.mktemp("runs")
    for rule in RULES:
        record_run(folder / rule / "trace.jsonl", rule, steps=16)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_report(sorted(folder.rglob("trace.jsonl")), folder / "out" / "report.html").read_text(encoding="utf-8")


def report(tmp_path: Path, *traces: Path) -> str:
    text = write_report(traces, tmp_path / "report.html").read_text(encoding="utf-8")
    Page(text)
    return text


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_is_whole_and_shows_every_part(page: str) -> None:
    tags = [tag for tag, _ in Page(page).tags]
    assert tags.count("figure") == 2 + 2 + 3 * len(RULES)  # per page, or per run
    assert tags.count("svg") == tags.count("figure") + 2 * len(RULES)  # and two legends
    for heading in (
        "Learning", "Mixed groups", "Rollouts per prompt over time", "Rollouts per prompt by success rate",
        "Calibration of the beliefs", "Changes of difficulty", "Sample completions", "Settings",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    words = text_of(page)
    for label in ("uniform", "beta", "paper"):
        assert label in words
    assert "4,096" in words  # rollouts spent: 16 steps of 32 prompts, 8 each
    assert "One run per rule is not evidence" in words
    assert "zero-gradient rollouts" in words
    for old in ("knapsack:", "posterior", "dead"):
        assert old not in words
    assert "model.hidden_size" in words


def test_the_page_fetches_nothing(page: str) -> None:
    for tag, attributes in Page(page).tags:
        assert tag not in {"script", "link", "iframe"}
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href"}:
                assert (value or "").startswith(("#", "data:")), f"<{tag} {name}={value}>"
    assert "@import" not in page
    assert "url(http" not in page
    # What is left of addresses are the names of the SVG dialect.
    assert set(re.findall(r"https?://[\w./-]+", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_the_same_traces_give_the_same_page(folder: Path, page: str, tmp_path: Path) -> None:
    again = write_report(sorted(folder.rglob("trace.jsonl")), tmp_path / "report.html")
    assert again.read_text(encoding="utf-8") == page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]  # no temporary file stays


def test_every_rule_keeps_its_colour(folder: Path) -> None:
    def colours(*rules: str) -> dict[str, str]:
        return {run.rule: run.colour for run in make_runs([read_trace(folder / r / "trace.jsonl") for r in rules])}

    alone, together = colours("beta"), colours("uniform", "paper", "beta")
    assert alone["beta"] == together["beta"]
    assert len(set(together.values())) == 3


def test_runs_of_one_rule_are_told_apart(tmp_path: Path) -> None:
    def labels(*paths: Path) -> list[str]:
        return [run.label for run in make_runs([read_trace(path) for path in paths])]

    first, second, third = (
        record_run(tmp_path / name / "t", "uniform", steps=1, seed=seed)
        for name, seed in (("a", 0), ("b", 1), ("c", 1))
    )
    assert labels(first) == ["uniform"]
    assert labels(first, second) == ["uniform, seed 0", "uniform, seed 1"]
    assert labels(second, third) == ["uniform, b", "uniform, c"]
    assert labels(first, first) == ["uniform #1", "uniform #2"]


def hostile_plan(prompt_id: str) -> Plan:
    two, ones = np.array([2]), np.array([1.0])
    return Plan(0, (prompt_id,), two, 2, two.copy(), two.copy(), ones * 0.5, ones * 2, np.array([True]))


def test_prompts_completions_and_settings_are_escaped(tmp_path: Path) -> None:
    attack = "$x^ <script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\ud800"
    run = {"rule": attack, "seed": attack, "settings": {attack: attack}}
    with TraceWriter(tmp_path / "t.jsonl", run) as writer:
        for step in range(3):
            sample = {"id": attack, "completion": attack, "reward": attack}
            writer.step(
                hostile_plan(attack),
                Outcomes.of_groups(0, [(attack, [1.0, 0.0])]),
                optimizer_step=step,
                seconds={},
                texts={attack: attack},
                samples=[sample],
            )
        writer.evaluation(3, 6, {attack: 0.5}, {attack: 0.5})
    page = report(tmp_path, tmp_path / "t.jsonl")
    tags = [tag for tag, _ in Page(page).tags]
    assert "script" not in tags
    assert "img" not in tags
    assert "49" not in text_of(page).split()
    assert html.escape("<script>alert(1)</script>") in page


# ------------------------------------------------------------------------------------------------ runs cut short


def test_an_empty_file_still_gives_a_page(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").touch()
    words = text_of(report(tmp_path, tmp_path / "t.jsonl"))
    assert "holds no record yet" in words
    assert "No comparison: no generation step has been recorded." in words


def test_a_run_without_steps_beside_one_with_steps(tmp_path: Path, folder: Path) -> None:
    record_run(tmp_path / "t.jsonl", "beta", steps=0, ended=None, exact=False)
    words = text_of(report(tmp_path, tmp_path / "t.jsonl", folder / "uniform" / "trace.jsonl"))
    assert "beta: no generation step has been recorded yet" in words
    assert "No comparison: it needs a run with uniform groups" in words


@pytest.mark.parametrize("exact", [True, False])
def test_a_single_step(tmp_path: Path, exact: bool) -> None:
    record_run(tmp_path / "t.jsonl", "beta", steps=1, exact=exact)
    assert "a single step has been recorded" in text_of(report(tmp_path, tmp_path / "t.jsonl"))


@pytest.mark.parametrize(
    ("ended", "words"),
    [("interrupted", "was interrupted after 3 generation steps"), (None, "the trace has no end record")],
)
def test_a_run_that_did_not_finish_says_so(tmp_path: Path, ended: str | None, words: str) -> None:
    record_run(tmp_path / "t.jsonl", "beta", steps=3, ended=ended)
    assert words in text_of(report(tmp_path, tmp_path / "t.jsonl"))


def test_kept_successes_are_shown_where_a_run_keeps_any(tmp_path: Path, folder: Path) -> None:
    """What is kept is that of the last step; ages and ratios are means over the successes used, not over steps."""
    per_step: list[dict[str, float]] = [
        {"kept": 2000.0, "kept_used": 2.0, "kept_age": 3.0, "kept_ratio": 0.5},
        {"kept": 1234.0, "kept_used": 6.0, "kept_age": 1.0},
        {"kept": 1200.0, "kept_used": 0.0},
    ]
    path = tmp_path / "a" / "t.jsonl"
    record_run(path, "beta", steps=3, ended=None)
    with TraceWriter(path, {}, resume_step=3) as writer:
        for step, metrics in enumerate(per_step, 3):
            writer.kept(step, metrics)
    other = folder / "uniform" / "trace.jsonl"
    words = text_of(report(tmp_path, other, path))
    assert "prompts with a kept success - 1,200 groups given a kept success - 8" in words
    assert "mean age of these successes, in steps - 1.5 mean ratio of these successes, at most 1 - 0.50" in words
    assert "kept success" not in text_of(report(tmp_path, other))

    # Trainers without old log-probabilities have no ratio, and what was not used has no age.
    record_run(tmp_path / "b" / "t.jsonl", "beta", steps=3, ended=None)
    with TraceWriter(tmp_path / "b" / "t.jsonl", {}, resume_step=3) as writer:
        writer.kept(3, {"kept": 7.0, "kept_used": 0.0})
    words = text_of(report(tmp_path, other, tmp_path / "b" / "t.jsonl"))
    assert "prompts with a kept success - 7 groups given a kept success - 0" in words
    assert "mean age of these successes, in steps - -" in words
    assert "mean ratio" not in words


@pytest.mark.filterwarnings("error:Mean of empty slice", "error:invalid value")
def test_a_step_that_brought_nothing(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.jsonl", {"rule": "mine"}) as writer:
        writer.step(hostile_plan("a"), Outcomes.of_groups(0, [("a", [])]), optimizer_step=0, seconds={"step": math.nan})
        writer.step(hostile_plan("a"), Outcomes.of_groups(0, [("a", [math.nan] * 2)]), optimizer_step=1, seconds={})
    assert "mine" in text_of(report(tmp_path, tmp_path / "t.jsonl"))


def test_no_trace_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="at least one trace"):
        write_report([], tmp_path / "r.html")
    assert main(["report", str(tmp_path)]) == 2
    (tmp_path / "rates.csv").write_text("id,p\na,0.5\n")
    assert main(["report", str(tmp_path / "rates.csv")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "there is no trace.jsonl in" in errors[0]
    assert "rates.csv:1: " in errors[1]
    assert len(errors) == 2


def test_the_command_finds_traces_below_folders(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "page.html"
    assert (
        main(["report", str(folder / "uniform"), str(folder / "uniform" / "trace.jsonl"), "--output", str(output)]) == 0
    )
    assert capsys.readouterr().out == f"{output}\n"
    assert "1 run of GRPO" in text_of(output.read_text())


# ------------------------------------------------------------------------------------------------ figures and words


def evaluated(path: Path, rule: str, points: Sequence[tuple[int, float]], metric: str = "heldout/pass_rate") -> Path:
    """A run of one step with a given learning curve."""
    with TraceWriter(path, {"rule": rule, "seed": path.stem}) as writer:
        two, ones = np.array([2]), np.array([1.0])
        plan = Plan(0, ("a",), two, 2, two.copy(), two.copy(), ones * 0.5, ones * 2, np.array([True]))
        writer.step(plan, Outcomes.of_groups(0, [("a", [1.0, 0.0])]), optimizer_step=0, seconds={})
        for step, (rollouts, value) in enumerate(points):
            writer.evaluation(step, rollouts, {metric: value})
        writer.end("finished")
    return path


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ([(0, 0.2), (100, 0.8)], "0.800 with beta, ahead by 0.200"),
        ([(0, 0.2), (50, 0.7), (100, 0.8)], "(uniform's final value was first measured after 50 % of the rollouts)"),
        ([(0, 0.2), (100, 0.4)], "0.400 with beta, behind by 0.200"),
        ([(0, 0.2), (100, 0.61)], "0.610 with beta, a difference of +0.010, which is within the noise between seeds"),
        # A longer run is compared at the number of rollouts that both reached.
        ([(0, 0.2), (200, 0.8)], "After 100 rollouts the held-out pass rate is 0.600 with uniform; 0.500 with"),
    ],
)
def test_the_verdict_compares_at_equal_rollouts(tmp_path: Path, ours: list[tuple[int, float]], words: str) -> None:
    uniform = evaluated(tmp_path / "u", "uniform", [(0, 0.2), (100, 0.6)])
    runs = make_runs([read_trace(path) for path in (uniform, evaluated(tmp_path / "k", "beta", ours))])
    assert words in verdict(runs)[0]
    assert "not evidence" in verdict(runs)[-1]


def test_the_verdict_covers_every_pass_rate_that_all_runs_have(tmp_path: Path) -> None:
    paths = [record_run(tmp_path / rule, rule, steps=4) for rule in RULES[:2]]
    heldout, train, caution = verdict(make_runs([read_trace(path) for path in paths]))
    assert "the held-out pass rate is" in heldout
    assert "the pass rate on training prompts is" in train
    assert caution == "One run per rule is not evidence: repeat with other seeds."


def test_several_seeds_are_averaged(tmp_path: Path) -> None:
    paths = [
        evaluated(tmp_path / f"{rule}{seed}", rule, [(0, 0.1), (100, end + 0.1 * seed)])
        for rule, end in (("uniform", 0.4), ("beta", 0.6))
        for seed in range(2)
    ]
    compared, caution = verdict(make_runs([read_trace(path) for path in paths]))
    assert "0.450 with uniform; 0.650 with beta, ahead by 0.200" in compared
    assert caution == "2 or more runs per rule."


def test_runs_without_evaluations_get_no_verdict(tmp_path: Path) -> None:
    paths = [record_run(tmp_path / rule, rule, steps=2, exact=False) for rule in RULES[:2]]
    runs = make_runs([read_trace(path) for path in paths])
    assert verdict(runs)[0].startswith("No comparison: not every run was evaluated")
    assert all("(observed)" in row["pass rate on training prompts"] for row in headline(runs))


def test_transitions_say_what_they_compare(folder: Path, tmp_path: Path) -> None:
    [exact] = transitions(make_runs([read_trace(folder / "beta" / "trace.jsonl")]))
    assert exact.source.startswith("exact success rates of 128 prompts, step 0 to step 16")
    assert sum(map(sum, exact.counts)) == 128
    assert "under 1 % counts as 0" in exact.source
    assert [_to_extremes(p) for p in (0.0, 0.009, 0.5, 0.991)] == [0, 0, 0.5, 1]
    visits = record_run(tmp_path / "t", "beta", steps=8, exact=False)
    [observed] = transitions(make_runs([read_trace(visits)]))
    assert "first and the last group of 128 prompts" in observed.source
    once = record_run(tmp_path / "once", "beta", steps=4, exact=False)
    assert transitions(make_runs([read_trace(once)])) == []


def test_settings_are_flattened() -> None:
    assert flat_settings({"a": {"b": 1, "c": {"d": 2}}, "e": {}}) == {"a.b": 1, "a.c.d": 2, "e": {}}


def test_smoothing_keeps_means_and_skips_the_unknown() -> None:
    np.testing.assert_allclose(smooth(np.full(100, 0.3)), 0.3)
    assert not np.isnan(smooth(np.array([1.0, math.nan, 1.0, 1.0, 1.0, 1.0]))).any()
    np.testing.assert_array_equal(smooth(np.array([1.0, 2.0])), [1.0, 2.0])
    assert smooth(np.array([])).size == 0


def test_bins_keep_zero_and_one_apart() -> None:
    x = np.array([0.0, 0.0, 0.05, 0.95, 1.0])
    middles, means, numbers = binned(x, np.array([1.0, 3.0, 5.0, 7.0, 9.0]))
    np.testing.assert_allclose(middles, [0.0, 0.05, 0.95, 1.0])
    np.testing.assert_allclose(means, [2.0, 5.0, 7.0, 9.0])
    np.testing.assert_allclose(numbers, [2, 1, 1, 1])


def test_the_terminal_and_the_page_show_the_same_figures(folder: Path, page: str) -> None:
    traces = sorted(folder.rglob("trace.jsonl"))
    runs = make_runs([read_trace(path) for path in traces])
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, folder, [path.parent.name for path in traces])
    shown = console.file.getvalue()
    for label in headline(runs)[0]:
        [line] = [line for line in shown.splitlines() if line.startswith(f"│ {label}")]
        cells = [cell.strip().replace("->", "→") for cell in line.strip("│").split("│")][1:]
        row = page.partition(f'<th scope="row">{html.escape(label, quote=True).replace("x27", "39")}</th>')[2]
        row = row.partition("</tr>")[0]
        assert sorted(re.findall(r"<td[^>]*>(.*?)</td>", row)) == sorted(cells), label


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 10)), min_size=1, max_size=12))
def test_labels_at_ends_keep_their_order_and_do_not_overlap(items: list[tuple[float, float]]) -> None:
    centres = sorted(centre for centre, _ in items)
    sizes = [size for _, size in items]
    places = spread(centres, sizes, 0, 100)
    for (one, size), (other, next_size) in pairwise(zip(places, sizes, strict=True)):
        assert other - one >= (size + next_size) / 2 - 1e-6
    if sum(sizes) <= 100:
        assert places[0] - sizes[0] / 2 >= -1e-6
        assert places[-1] + sizes[-1] / 2 <= 100 + 1e-6
    apart = [20.0 * (i + 1) for i in range(len(items))]  # far from one another: each stays at its line
    assert spread(apart, sizes, 0, 1e3) == pytest.approx(apart)


@pytest.mark.parametrize("label", ["calibrated", "calibrated, seed 12", "x" * 40 + ", " + "y" * 40])
def test_labels_at_ends_take_a_quarter_of_the_width_at_most(label: str) -> None:
    with style():
        figure, axes = panel(right=END_LABELS)
        axes.plot([0, 1], [0, 1])
        label_ends(axes, [(1, 1, label, "red"), (1, 0.9, label, "red")])
        renderer = FigureCanvasAgg(figure).get_renderer()
    assert len(axes.texts) == 2
    assert axes.get_position().width > 0.62
    for text in axes.texts:
        assert text.get_window_extent(renderer).x1 <= figure.bbox.x1
    label_ends(axes, [(1, 1, label, "red")] * 30)
    assert len(axes.texts) == 2, "too many are left to the legend"
