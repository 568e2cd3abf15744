"""`knapsack-rl allocate`: a file of pass rates in, counts out."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.__main__ import main
from knapsack_rl.allocate.decide import decide
from knapsack_rl.allocate.explain import explanation
from knapsack_rl.allocate.rows import Evidence, detect_format, read_evidence
from knapsack_rl.beliefs.ids import row_id
from knapsack_rl.config import RULES, AllocationConfig, RuleName
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.values import knapsack_marginals

COUNTS_CSV = "id,successes,attempts\na,8,16\nb,0,16\nc,16,16\nd,0,0\ne,4,16\nf,14,16\n"


def given_file(folder: Path, text: str, name: str = "rates.csv") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def counts(text: str) -> dict[str, int]:
    return {row["prompt_id"]: int(row["count"]) for row in csv.DictReader(io.StringIO(text))}


# ------------------------------------------------------------------------------------------------ laws


RATES = st.floats(0, 1)
ATTEMPTS = st.sampled_from([0.0, 1.0, 8.0, 20.0, float("inf")])


def evidence_of(rows: list[tuple[float, float]]) -> Evidence:
    rates, attempts = np.array(rows).T
    return Evidence(tuple(map(str, range(len(rows)))), rates, attempts)


EVIDENCE = st.lists(st.tuples(RATES, ATTEMPTS), min_size=1, max_size=12).map(evidence_of)


@settings(deadline=None)
@given(EVIDENCE, st.sampled_from(RULES), st.integers(2, 12))
def test_any_evidence_is_divided_exactly_and_explained(evidence: Evidence, rule: RuleName, average: int) -> None:
    budget = average * len(evidence.prompt_ids)
    decision = decide(evidence, rule, budget, 2, 16)
    assert decision.plan.counts_P.sum() == budget
    assert decision.plan.counts_P.min() >= 2
    text = explanation(decision, rule, 100)
    assert "nan" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


@settings(deadline=None)
@given(st.lists(RATES, min_size=1, max_size=20))
def test_exact_rates_get_the_papers_optimum(rates: list[float]) -> None:
    size = len(rates)
    evidence = Evidence(tuple(map(str, range(size))), np.array(rates), np.full(size, np.inf))
    decision = decide(evidence, "beta", 8 * size, 2, 32)
    best = solve(knapsack_marginals(np.array(rates), 32), 8 * size, np.full(size, 2), np.full(size, 32))
    np.testing.assert_array_equal(decision.plan.counts_P, best.counts_P)


@pytest.mark.parametrize("rule", RULES)
def test_counts_give_the_same_plan_as_an_allocator_that_saw_them(rule: RuleName) -> None:
    """The command is the library: a file of what was observed plans what observing it plans."""
    rng = np.random.default_rng(0)
    groups = [(str(i), (rng.random(16) < p).astype(float).tolist()) for i, p in enumerate(rng.random(20))]
    allocator = AllocationConfig(rule=rule, pool=1, max_count=64).make_allocator()
    allocator.observe(Outcomes.of_groups(0, groups))
    ids = [prompt_id for prompt_id, _ in groups]
    expected = allocator.plan(ids, 160, 0)
    evidence = Evidence(tuple(ids), np.array([np.mean(rewards) for _, rewards in groups]), np.full(20, 16.0))
    np.testing.assert_array_equal(decide(evidence, rule, 160, 2, 64).plan.counts_P, expected.counts_P)


@settings(deadline=None)
@given(EVIDENCE, st.integers(2, 6), st.sampled_from(["calibrated", "beta"]))
def test_the_smallest_group_is_a_limit(evidence: Evidence, smallest: int, rule: RuleName) -> None:
    plan = decide(evidence, rule, 6 * len(evidence.prompt_ids), 0, 16, smallest).plan
    assert plan.counts_P.sum() == 6 * len(evidence.prompt_ids)
    assert ((plan.counts_P == 0) | (plan.counts_P >= smallest)).all()


def test_a_million_attempts_and_half_an_attempt_are_evidence_too() -> None:
    evidence = Evidence(("a", "b", "c"), np.array([0.5, 0.5, 1.0]), np.array([1e12, 16.0, 0.5]))
    plan = decide(evidence, "calibrated", 24, 2, 16).plan
    assert plan.success_rates_P[0] == pytest.approx(plan.success_rates_P[1], abs=0.1)
    assert plan.seen_P.all()


# ------------------------------------------------------------------------------------------------ input and output


def test_the_default_is_that_of_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = given_file(tmp_path, COUNTS_CSV)
    shown = []
    for words in ([], ["--rule", AllocationConfig().rule], ["--rule", "beta"]):
        assert main(["allocate", rates, *words]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]


def test_of_a_pool_one_prompt_in_so_many_is_paid_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", given_file(tmp_path, COUNTS_CSV), "--pool", "3", "--average", "4"]) == 0
    planned = counts(capsys.readouterr().out)
    assert sum(planned.values()) == 2 * 4
    assert min(planned.values()) == 0
    assert main(["allocate", given_file(tmp_path, COUNTS_CSV), "--pool", "3", "--rule", "paper"]) == 2
    assert "does not choose among a pool: use --pool=1" in capsys.readouterr().err


def test_the_prompt_goes_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = [{"role": "user", "content": "1 + 1?"}]
    row = {"prompt": chat, "answer": "2", "successes": 1, "attempts": 4}
    assert main(["allocate", given_file(tmp_path, json.dumps(row), "r.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out) == {"prompt_id": "1", "count": 8, **row}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", COUNTS_CSV),
        ("r.csv", "\ufeff" + COUNTS_CSV.replace("\n", "\r\n")),  # from a spreadsheet
        ("r.csv", "prompt_id, pass_rate, attempts\na,0.5,16\nb,0,16\nc,1,16\nd,,0\ne,0.25,16\nf,0.875,16\n"),
        ("r.jsonl", "".join(json.dumps({"id": i, "successes": s, "attempts": n, "other": []}) + "\n\n" for i, s, n in [
            ("a", 8, 16), ("b", 0, 16), ("c", 16, 16), ("d", 0, 0), ("e", 4, 16), ("f", 14, 16)])),
        ("no-suffix", COUNTS_CSV),
    ],
)  # fmt: skip
def test_every_dialect_of_the_input_gives_the_same_counts(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["allocate", given_file(tmp_path, text, name), "--to", "csv", "--rule", "beta"]) == 0
    assert counts(capsys.readouterr().out) == {"a": 9, "b": 7, "c": 2, "d": 10, "e": 13, "f": 7}


def test_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rates.parquet"
    pq.write_table(pa.table({"id": [7, 8], "p": [0.5, 0.01], "text": ["x", "y"]}), path)
    assert main(["allocate", str(path), "--budget", "16"]) == 0
    assert counts(capsys.readouterr().out) == {"7": 11, "8": 5}
    (tmp_path / "bad.parquet").write_text("id,p\n")
    assert main(["allocate", str(tmp_path / "bad.parquet")]) == 2
    pq.write_table(pa.table({"id": [7], "rate": [0.5]}), path)
    assert main(["allocate", str(path)]) == 2
    pq.write_table(pa.table([[0.5], [0.1]], names=["p", "p"]), path)
    assert main(["allocate", str(path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "is not a Parquet file" in errors[0]
    assert "the columns are: id, rate" in errors[1]
    assert "the column 'p' occurs twice: rename one" in errors[2]


@pytest.mark.parametrize("value", [7, 7.0, "7", np.int32(7), np.float64(7), 2.5, "a b", True])
def test_ids_are_those_of_training(value: object) -> None:
    """A column that was widened, to floats because of one gap say, names the same prompts."""
    plain = value.item() if isinstance(value, np.generic) else value
    found = read_evidence(json.dumps({"id": plain, "p": 0.5}).encode(), "x", "jsonl")
    assert found.prompt_ids == (row_id({"prompt_id": value}),)


@pytest.mark.parametrize("value", [None, "", " ", float("nan"), [7], {}])
def test_a_cell_without_an_id_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="x:1: id is .*: give every prompt an id, or remove the column"):
        read_evidence(json.dumps({"id": value, "p": 0.5}).encode(), "x", "jsonl")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("p\n0.5\n0.5\n", "1,8,0.5"),
        ('{"p": 0.5}\n{"p": 0.5}\n', '{"prompt_id": "1", "count": 8, "p": 0.5}'),
        ('[{"p": 0.5},\n {"p": 0.5}]', '{"prompt_id": "1", "count": 8, "p": 0.5}'),
    ],
)
def test_standard_input_is_recognised_and_rows_are_numbered(
    text: str, first: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["allocate"]) == 0
    assert first in capsys.readouterr().out.splitlines()


def test_detection_prefers_the_name() -> None:
    assert detect_format("x.CSV", b"{") == "csv"
    assert detect_format("x", b"PAR1") == "parquet"
    assert detect_format("x", b"") == "csv"


def test_output_goes_to_a_file_and_the_explanation_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "counts.jsonl"
    output.write_text("old")
    words = ["--output", str(output), "--explain", "--rows", "2", "--rule", "beta"]
    assert main(["allocate", given_file(tmp_path, COUNTS_CSV), *words]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows[0] == {"prompt_id": "a", "count": 9, "successes": "8", "attempts": "16"}
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "and 4 more prompts" in captured.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.jsonl", "rates.csv"]  # no temporary file


def test_explanation_names_the_limit_that_a_count_equals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", given_file(tmp_path, COUNTS_CSV), "--max", "10", "--explain", "--rule", "beta"]) == 0
    captured = capsys.readouterr()
    assert sum(counts(captured.out).values()) == 48  # the table does not get between the counts
    held = {line.split()[0]: line.split()[-2:] for line in captured.err.splitlines() if " " in line}
    assert held["c"] == ["low", "2"]
    assert held["e"] == ["high", "10"]
    assert "unseen" in captured.err
    assert "price" in captured.err


def test_the_price_is_the_value_of_the_cheapest_rollout_bought() -> None:
    evidence = read_evidence(COUNTS_CSV.encode(), "x", "csv")
    decision = decide(evidence, "beta", 48, 2, 128)
    plan = decision.plan
    marginals = decision.marginals(np.arange(6), 64)
    free = plan.counts_P > plan.low_P
    last = marginals[np.arange(6), plan.counts_P - 1]
    following = marginals[np.arange(6), plan.counts_P]
    assert plan.price == pytest.approx(last[free].min())
    assert plan.price >= following.max()


def test_lower_limit_zero_leaves_prompts_out_and_never_plans_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = given_file(tmp_path, "id,p\na,0.5\nb,0\nc,1\nd,0.3\n")
    assert main(["allocate", rates, "--min", "0", "--budget", "15"]) == 0
    planned = counts(capsys.readouterr().out)
    assert (planned["b"], planned["c"]) == (0, 0)
    assert planned["a"] + planned["d"] == 15


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("id,p\n", "holds no rows"),
        (
            "id,rate\na,0.5\n",
            "rates.csv:2: no column `pass_rate` (or `p`), nor both `successes` and `attempts`; the columns",
        ),
        ("id,successes\na,5\n", "the columns are: id, successes"),
        ("id,p\na,0.5\nb,1.2\n", "rates.csv:3: p is 1.2: it must be in [0, 1]"),
        ("id,p\na,-0.5\n", "rates.csv:2: p is -0.5: it must be in [0, 1]"),
        ("id,p\na,nan\n", "rates.csv:2: p is nan: it must be in [0, 1]"),
        ("id,p\na,often\n", "rates.csv:2: p is 'often', not a number"),
        ("id,p\na,\n", "rates.csv:2: p is '', not a number"),
        ("id,successes,attempts\na,5,4\n", "rates.csv:2: 5 successes in 4 attempts"),
        ("id,successes,attempts\na,-1,4\n", "rates.csv:2: successes is -1: it must be finite and at least 0"),
        ("id,successes,attempts\na,1,inf\n", "rates.csv:2: attempts is inf"),
        ("id,p\na,0.5\nb,0.5\na,0.5\n", "rates.csv:4: the id 'a' also occurs at rates.csv:2"),
        ("id,p\n ,0.5\n", "give every prompt an id"),
        ("id,p\na,0.5,9\n", "rates.csv:2: the header has 2 columns, this row another number"),
        ("id,p\na\n", "rates.csv:2: the header has 2 columns, this row another number"),
    ],
)
def test_bad_csv_is_one_error_with_place_and_value(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_file(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    assert main(["allocate", "rates.csv"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"p": 0.5}\n{"p": 0.5\n', ":2: not JSON"),
        ("[0.5]\n", "expected an object"),
        ('{"p": "yes"}\n', "p is 'yes', not a number"),
        ('{"p": ' + "1" * 400 + "}\n", "it must be in [0, 1]"),
        ('{"p": ' + "1" * 9000 + "}\n", ":1: not JSON"),
        ('{"p": ' + "[" * 9000 + "]" * 9000 + "}\n", ":1: not JSON: nested too deeply"),
        ('[{"p": 0.5}, 7]\n', ", row 2: expected an object with named values, found 7"),
        ('[{"p": 0.5}\n', ": not a JSON array"),
        ('{"p": null}\n', "p is None, not a number"),
        ('{"p": 0.5}\n{"q": 0.5}\n', ":2: no column"),
        ('{"id": null, "p": 0.5}\n', "give every prompt an id"),
    ],
)
def test_bad_jsonl_is_one_error_with_its_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["allocate", given_file(tmp_path, text, "r.jsonl")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min", "1"], "a group of one has no gradient"),
        (["--min", "1", "--budget", "48"], "--min is 1: a group of one has no gradient"),
        (["--min", "8", "--max", "4"], "--max is 4: it must be at least --min-group (2) and --min (8)"),
        (
            ["--average", "200", "--max", "128"],
            "--average is 200: the average number of rollouts must lie between --min (2) and --max (128)",
        ),
        (["--average", "1"], "--average is 1: it must be a whole number of at least 2"),
        (["--average", "x"], "'x' is not a whole number"),
        (["--budget", "11"], "below the 12"),
        (["--budget", "100", "--max", "10"], "above the 60"),
        (["--rule", "uniform", "--budget", "11"], "leave groups of one"),
        (["--rule", "uniform", "--budget", "18", "--min-group", "4"], "below the smallest group (4): give at least 24"),
    ],
)
def test_impossible_demands_say_why(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.csv"
    rates = given_file(tmp_path, COUNTS_CSV)
    try:
        assert main(["allocate", rates, "--output", str(output), *options]) == 2
    except SystemExit as refused:  # by the parser
        assert refused.code == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.csv").write_bytes(b"id,p\n\xff,0.5\n")
    assert main(["allocate", str(tmp_path / "r.csv")]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = given_file(tmp_path, COUNTS_CSV)
    assert main(["allocate", rates, "--output", str(tmp_path)]) == 2
    assert main(["allocate", rates, "--output", str(tmp_path / "no" / "where.csv")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == f"knapsack-rl: error: {tmp_path}: Is a directory"
    assert errors[1] == f"knapsack-rl: error: {tmp_path / 'no' / 'where.csv'}: No such file or directory"


# ------------------------------------------------------------------------------------------------ its own output


ROWS = (
    '[{"id": "a", "p": 0.5, "prompt": [{"role": "user", "content": "q; \\"x\\", y"}]}, {"id": "b", "p": true, "n": 7}]'
)


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.jsonl", "out.parquet"])
def test_the_output_is_an_input_and_keeps_the_columns(name: str, tmp_path: Path) -> None:
    first, again = tmp_path / name, tmp_path / f"again-{name}"
    rows = ROWS if not name.endswith("parquet") else ROWS.replace("true", "1.0")
    assert main(["allocate", given_file(tmp_path, rows, "rows.json"), "--output", str(first)]) == 0
    assert main(["allocate", str(first), "--output", str(again)]) == 0
    assert again.read_bytes() == first.read_bytes()
    evidence = read_evidence(again.read_bytes(), name, detect_format(name, b""))
    assert evidence.prompt_ids == ("a", "b")
    assert list(evidence.columns) == ["p", "prompt", "n"]
    assert "q; " in str(evidence.columns["prompt"][0])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_every_delimiter_is_found_and_kept(delimiter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [["id", "pass, rate; or so", "p"], ["a", "x", "0.5"], ["b", "y", "True"]]
    text = "".join(delimiter.join(f'"{cell}"' for cell in line) + "\n" for line in lines)
    assert main(["allocate", given_file(tmp_path, text)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split(delimiter)[2:] == ["x", "0.5"]


@pytest.mark.parametrize(("cell", "rate"), [("0,5", 0.5), ("0,125", 0.125), ("true", 1.0), ("False", 0.0)])
def test_numbers_of_other_tongues(cell: str, rate: float) -> None:
    assert read_evidence(f"id;p\na;{cell}\n".encode(), "x", "csv").rates_P[0] == rate


def test_a_comma_that_may_separate_thousands_is_refused() -> None:
    with pytest.raises(ValueError, match="attempts is '1,250', not a number"):
        read_evidence(b"id;successes;attempts\na;1;1,250\n", "x", "csv")


def test_a_column_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="the column 'p' occurs twice"):
        read_evidence(b"p,p\n0.5,0.1\n", "x", "csv")
