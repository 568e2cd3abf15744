"""The append-only record of a run: one JSON line per record, flushed as it is written.

Every trainer writes it; metrics, replay and the report read nothing else. A record counts once its line is complete:
a kill or a crash can only leave the last line without its newline, which every reader ignores and a resumed writer cuts
off. A record that cannot be written (a full disk) is lost, and the run goes on: what was written of it is undone, and
the next record that can be written is preceded by one that says what is missing.

| kind   | written              | holds                                                                                |
|--------|----------------------|--------------------------------------------------------------------------------------|
| run    | first                | version, library, engine, rule, seed, started, settings                              |
| step   | per generation step  | the plan (ids, counts, low, high, rates, pseudo_counts, seen, budget, price), its    |
|        |                      | outcomes (got, rewards, tokens, threshold), seconds, texts of new prompts, samples,  |
|        |                      | and what it was made with: log_odds, and features of new prompts (`looks`)           |
| eval   | per evaluation       | step, rollouts spent so far, metrics, and exact success rates by prompt where known  |
| resume | when a run continues | step: earlier records of this and later steps are superseded (of evals: only later)  |
| lost   | after a failure      | records, steps: how many records could not be written, and of which steps; reason    |
| end    | last                 | reason ("finished" or "interrupted"), seconds                                        |

NaN is written as null, and so is an infinite pseudo-count (a point estimate).
"""

from knapsack_rl.trace.reader import Trace, TraceReader, read_records, read_trace
from knapsack_rl.trace.records import End, Evaluation, Kept, Lost, Record, Resume, RunStart, Step
from knapsack_rl.trace.writer import TraceWriter, move_aside

TRACE_NAME = "trace.jsonl"

__all__ = [
    "TRACE_NAME", "End", "Evaluation", "Kept", "Lost", "Record", "Resume", "RunStart", "Step", "Trace", "TraceReader",
    "TraceWriter", "move_aside", "read_records", "read_trace",
]  # fmt: skip
