"""`make soak`: tries to break what docs/reliability.md guarantees, and prints a table of tries and faults.

Every campaign is a function of a seed that makes some tries and returns their number and the faults it found. It holds
the law itself, so that tests/test_state_soak.py runs the same functions with a few tries each.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import soak_pages
from knapsack_rl import (
    AllocationConfig,
    BeliefFileError,
    BetaBeliefs,
    CalibratedBeliefs,
    Outcomes,
    PromptFeatures,
    Session,
)
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.report import write_report
from knapsack_rl.trace import TRACE_NAME, TraceWriter, read_trace

IDS = [f"p{i}" for i in range(12)]
BELIEFS: dict[str, Callable[[], Any]] = {"beta": BetaBeliefs, "window": WindowBeliefs, "calibrated": CalibratedBeliefs}
# Steps of a run that is killed: it never comes to its end.
STEPS = 80


class Result(NamedTuple):
    """Tries, and what each fault was; ``skipped`` says why there were no tries."""

    tries: int
    faults: list[str]
    skipped: str = ""


def solver(seed: int, tries: int = 40) -> Result:
    """Plans against a dynamic programme over exact totals, written without the solver's code."""
    rng, faults = np.random.default_rng(seed), []
    for _ in range(tries):
        prompts, high = int(rng.integers(1, 6)), int(rng.integers(2, 9))
        low_P = rng.choice([0, 2], prompts)
        high_P = np.maximum(rng.integers(2, high + 1, prompts), low_P)
        budget = int(rng.integers(low_P.sum(), high_P.sum() + 1))
        marginals = rng.random((prompts, high))
        if rng.random() < 0.5:  # concave
            marginals = -np.sort(-marginals, axis=1)
            marginals[:, 0] = np.maximum(2 * marginals[:, 2 % high] - marginals[:, 1], 0)
        values = np.concatenate([np.zeros((prompts, 1)), np.cumsum(marginals, axis=1)], axis=1)
        best = {0: 0.0}
        for i in range(prompts):
            counts = [n for n in range(int(low_P[i]), int(high_P[i]) + 1) if n != 1]
            totals: dict[int, float] = {}
            for spent, n in itertools.product(best, counts):
                totals[spent + n] = max(totals.get(spent + n, -np.inf), best[spent] + float(values[i, n]))
            best = totals
        try:
            found = solve(marginals, budget, low_P, high_P)
        except ValueError:
            if budget in best:
                faults.append(f"seed {seed}: a plan of {budget} exists and was refused")
            continue
        value = sum(float(values[i, n]) for i, n in enumerate(found.counts_P.tolist()))
        if int(found.counts_P.sum()) != budget or budget not in best or abs(value - best[budget]) > 1e-9:
            faults.append(f"seed {seed}: value {value}, the optimum is {best.get(budget)}")
    return Result(tries, faults)


def beliefs(seed: int, tries: int = 10) -> Result:
    """Random sequences of outcomes: forecasts are in range, the same after a file, and plans spend the budget."""
    rng, faults = np.random.default_rng(seed), []
    with _folder() as folder:
        for k in range(tries):
            name = list(BELIEFS)[k % len(BELIEFS)]
            one = BELIEFS[name]()
            for step in range(int(rng.integers(1, 6))):
                one.observe(_outcomes(rng, step))
            one.save(folder / "b.npz")
            other = BELIEFS[name]()
            other.load(folder / "b.npz")
            before, after = one.forecast(IDS, 9), other.forecast(IDS, 9)
            rates = before.success_rates_P
            if not ((rates >= 0) & (rates <= 1)).all() or not (before.pseudo_count_P >= 0).all():
                faults.append(f"{name}, seed {seed}: a forecast out of range")
            if rates.tobytes() != after.success_rates_P.tobytes():
                faults.append(f"{name}, seed {seed}: another forecast after a file")
            rule = "paper" if name == "window" else name
            plan = Session(AllocationConfig(rule=rule, pool=1)).plan(IDS, 8 * len(IDS))  # type: ignore[arg-type]
            if int(plan.counts_P.sum()) != 8 * len(IDS) or (plan.counts_P == 1).any():
                faults.append(f"{name}, seed {seed}: a plan of {plan.counts_P.tolist()}")
    return Result(tries, faults)


def kills(seed: int, tries: int = 8, overwritten: bool = False) -> Result:
    """A process is killed while it trains and saves; a run that goes on from its files plans as one never stopped."""
    rng, faults = np.random.default_rng(seed), []
    expected = [_step(reference) for reference in [Session(_config())] for _ in range(STEPS)]
    with _folder() as folder:
        for k in range(tries):
            place = folder / str(k)
            place.mkdir()
            delay, child = float(rng.random()) * 0.12, os.fork()
            if not child:  # trains and saves until it is killed
                try:
                    session = Session(_config())
                    for step in range(STEPS - 5):
                        _step(session)
                        target = place if overwritten else place / str(step)
                        target.mkdir(exist_ok=True)
                        session.save_to(target, trainer_step=session.step)
                finally:
                    os._exit(1)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            saved = sorted((p for p in place.rglob("knapsack_rl.npz")), key=lambda p: p.stat().st_mtime_ns)
            session = Session(_config())
            if saved and session.load_from(saved[-1].parent, trainer_step=None) is None:
                faults.append(f"seed {seed}, kill {k}: the state is not found")
            while session.step < len(expected):
                at = session.step
                if _step(session) != expected[at]:
                    faults.append(f"seed {seed}, kill {k}: step {at} is planned otherwise")
                    break
            session.save_to(place)
            if left := [p.name for p in place.iterdir() if p.name.endswith(".tmp")]:
                faults.append(f"seed {seed}, kill {k}: {left} stayed")
    return Result(tries, faults)


def bit_flips(seed: int, tries: int = 400) -> Result:
    """One flipped bit of a state file: the same content, or a `BeliefFileError` that changes nothing."""
    rng, faults = np.random.default_rng(seed), []
    with _folder() as folder:
        for kind, make in _states().items():
            make(True).save(folder / "good.npz")
            good = (folder / "good.npz").read_bytes()
            whole, other = _content(make(True)), _content(make(False))
            target = make(False)
            for bit in rng.choice(8 * len(good), min(tries // 3, 8 * len(good)), replace=False).tolist():
                damaged = bytearray(good)
                damaged[bit // 8] ^= 1 << bit % 8
                (folder / "bad.npz").write_bytes(damaged)
                try:
                    target.load(folder / "bad.npz")
                except BeliefFileError:
                    if _content(target) != other:
                        faults.append(f"{kind}, bit {bit}: refused, but memory changed")
                        target = make(False)
                except Exception as error:
                    faults.append(f"{kind}, bit {bit}: {error!r}")
                else:
                    if _content(target) != whole:
                        faults.append(f"{kind}, bit {bit}: loaded with other content")
                    target = make(False)
    return Result(3 * (tries // 3), faults)


def hostile_files(seed: int, tries: int = 60) -> Result:
    """Traces with values of wrong types and sizes, cut anywhere: a `ValueError` with the place, or a readable trace."""
    rng, faults = np.random.default_rng(seed), []
    values = (
        "null", "true", '"x"', "[]", "[1]", '["a"]', "{}", '{"a":[1]}', "-1", "1e999", "1" * 400, "1" * 5000,
        "[" * 3000 + "]" * 3000, "1" + "0" * 20, "[null,null]", "[[1,2],[3,4]]", "NaN", "-0.0", '"\\ud800"',
    )  # fmt: skip
    with _folder() as folder:
        lines = soak_pages.write_trace(folder / "good.jsonl")
        for _ in range(tries):
            i = int(rng.integers(len(lines)))
            fields = json.loads(lines[i])
            key = str(rng.choice(list(fields)))
            fields[key] = "@@"
            changed = json.dumps(fields).replace('"@@"', str(rng.choice(values)))
            text = "\n".join([*lines[:i], changed, *lines[i + 1 :]]) + "\n"
            path = folder / TRACE_NAME
            path.write_text(text if rng.random() < 0.8 else text[: int(rng.integers(len(text)))])
            try:
                read_trace(path)
                write_report([path], folder / "report.html")
            except ValueError as error:
                if f"{path}:" not in str(error):
                    faults.append(f"{key} = {changed[:40]}: no place in {error}")
            except Exception as error:
                faults.append(f"{key}: {error!r}"[:200])
    return Result(tries, faults)


def full_disk(seed: int, tries: int = 10) -> Result:
    """A trace that meets a full disk: training goes on, and the trace is readable and says what is missing."""
    rng, faults = np.random.default_rng(seed), []
    with _folder() as folder:
        for k in range(tries):
            path = folder / f"{k}.jsonl"
            session = Session(_config())
            session.open_trace(path, {"engine": "soak", "rule": "beta", "seed": 0, "settings": {}})
            full = set(rng.choice(8, int(rng.integers(1, 5)), replace=False).tolist())
            for step in range(8):
                try:
                    with _limit(path.stat().st_size + int(rng.integers(0, 200)) if step in full else None):
                        _step(session)
                except Exception as error:
                    faults.append(f"seed {seed}: training ended with {error!r}")
            assert session.trace is not None
            session.trace.end("finished")
            trace = read_trace(path)
            missing = {step for lost in trace.lost for step in lost.steps}
            if {step.plan.step for step in trace.steps} | missing != set(range(8)):
                faults.append(f"seed {seed}: {len(trace.steps)} steps and {sorted(missing)} missing, of 8")
    return Result(tries, faults)


def threads(seed: int, tries: int = 200) -> Result:
    """Rollouts observed by four threads: each is counted once."""
    session, each = Session(AllocationConfig(rule="beta", pool=1, half_life=1e9)), tries // 4
    errors: list[str] = []

    def work(thread: int) -> None:
        try:
            for batch in range(each):
                ids = [f"{seed}-{thread}-{batch}-{i}" for i in range(4)]
                plan = session.plan(ids, 32)
                session.observe(plan.step, [name for name in ids for _ in range(8)], [1.0, 0.0] * 16)
        except Exception as error:
            errors.append(repr(error))

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    ids = [f"{seed}-{t}-{b}-{i}" for t in range(4) for b in range(each) for i in range(4)]
    seen = session.allocator.plan(ids, 8 * len(ids), session.step).pseudo_count_P
    errors += [f"{int((abs(seen - 9) > 1e-3).sum())} prompts lost rollouts"] if (abs(seen - 9) > 1e-3).any() else []
    return Result(tries, errors)


def starts(seed: int, tries: int = 5) -> Result:
    """Two runs that start in one folder at once: the records of both, and of the run before, are kept."""
    faults = []
    with _folder() as folder:
        for k in range(tries):
            place = folder / str(k)
            TraceWriter(place / TRACE_NAME, {"made_by": "before"}).end("finished")
            reader, writer = os.pipe()
            children = []
            for c in range(2):
                child = os.fork()
                if not child:
                    os.read(reader, 1)
                    TraceWriter(place / TRACE_NAME, {"made_by": str(c)}).end("finished")
                    os._exit(0)
                children.append(child)
            os.write(writer, b"xx")
            for child in children:
                os.waitpid(child, 0)
            os.close(reader), os.close(writer)
            found = sorted(str(read_trace(path).run.get("made_by")) for path in place.glob("trace*"))
            if found != ["0", "1", "before"]:
                faults.append(f"seed {seed}, start {k}: the records of {found} are there")
    return Result(tries, faults)


def hostile_strings(seed: int, tries: int = 12) -> Result:
    """Strings of attacks as ids, texts, names and settings of reports and comparisons, in a browser: they stay text."""
    return Result(*soak_pages.hostile_strings(seed, tries))


def overwritten(seed: int, tries: int = 8) -> Result:
    """As `kills`, and every checkpoint replaces the one before."""
    return kills(seed, tries, overwritten=True)


CAMPAIGNS: dict[str, Callable[[int], Result]] = {
    "plans against a dynamic programme": solver,
    "random sequences of outcomes": beliefs,
    "kills, a folder per checkpoint": kills,
    "kills, one folder overwritten": overwritten,
    "flipped bits of state files": bit_flips,
    "hostile and cut traces": hostile_files,
    "full disk": full_disk,
    "two starts at once": starts,
    "threads": threads,
    "pages of hostile strings in a browser": hostile_strings,
}


def main() -> int:
    """Run every campaign for its share of the time, print the table, and return 1 if there are faults."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument(
        "minutes", nargs="?", type=float, default=5.0, help="time of all campaigns together (default 5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first try (default 0)")
    options = parser.parse_args()
    share, failed = 60 * options.minutes / len(CAMPAIGNS), 0
    logging.disable()  # warnings are expected here
    print("| what is tried | tries | faults |\n|---|---|---|", flush=True)
    for name, campaign in CAMPAIGNS.items():
        began, tries, faults, skipped = time.monotonic(), 0, [], ""
        for seed in itertools.count(options.seed):
            result = campaign(seed)
            tries, faults, skipped = tries + result.tries, faults + result.faults, result.skipped
            if skipped or time.monotonic() - began > share:
                break
        print(f"| {name} | {skipped or f'{tries:,}'} | {len(faults)} |", flush=True)
        for fault in faults[:5]:
            print(f"    {fault}", file=sys.stderr)
        failed += bool(faults)
    return int(failed > 0)


def _config() -> AllocationConfig:
    return AllocationConfig(rule="beta", pool=1)


def _step(session: Session) -> list[int]:
    """One step whose rewards depend on the step alone."""
    plan = session.plan(IDS, 8 * len(IDS))
    rng = np.random.default_rng(plan.step)
    solved = rng.random(plan.budget) < np.repeat(np.linspace(0, 1, len(IDS)), plan.counts_P)
    ids = [plan.prompt_ids[i] for i in plan.group_PG]
    session.observe(plan.step, ids, solved.astype(float))
    return plan.counts_P.tolist()


def _outcomes(rng: np.random.Generator, step: int) -> Outcomes:
    sizes = [2, 8, 64, 1000]
    groups = [(name, rng.choice([0.0, 1.0, np.nan], int(rng.choice(sizes)))) for name in rng.choice(IDS, 4).tolist()]
    return Outcomes.of_groups(step, [(name, rewards.tolist()) for name, rewards in groups])


def _states() -> dict[str, Callable[[bool], Any]]:
    """Makers of what is saved: with content (True), or with other content."""

    def beta(full: bool) -> Any:
        found = BetaBeliefs()
        found.observe(Outcomes.of_groups(0, [("a" if full else "b", [1.0, 0.0])]))
        return found

    def calibrated(full: bool) -> Any:
        found = CalibratedBeliefs()
        features = PromptFeatures(np.array([[0.5, -1.0]]), np.array([[0.3]]))
        found.observe(Outcomes(0, ("a" if full else "b",), np.array([2]), np.array([1.0, 0.0]), features=features))
        return found

    def session(full: bool) -> Any:
        found = Session(_config())
        _step(found)
        found.plan(IDS[: 6 if full else 4], 48 if full else 32)
        return found

    return {"beta": beta, "calibrated": calibrated, "session": session}


def _content(what: Any) -> str:
    return repr(_plain(what.state_dict()))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="knapsack-soak-") as folder:
        yield Path(folder)


@contextmanager
def _limit(size: int | None) -> Iterator[None]:
    """Files cannot grow beyond a size, which fails as a full disk does: a part is written, then an error comes."""
    real = os.write

    def write(handle: int, data: Any) -> int:
        room = 0 if size is None else size - os.fstat(handle).st_size
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, bytes(data)[:room])

    if size is not None:
        os.write = write
    try:
        yield
    finally:
        os.write = real


if __name__ == "__main__":
    sys.exit(main())
