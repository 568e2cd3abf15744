"""avg@16 and pass@16 of a model on the benchmarks, by EleutherAI's lm-evaluation-harness (lm-eval 0.4.13).

lm-eval and not lighteval: it reads local files, samples each question n times (`repeats`) and takes a scoring function,
so the files of prepare.py and the judge of the training serve as they are; a release came in August 2026. lighteval
0.13 (November 2025) has avg@n and pass@k, but with a judge of its own, and it asks for vllm<0.10.2 and for another
version of math-verify's parser than math-verify itself.

    python evaluate.py MODEL --data DATA --output RESULTS [--backend vllm]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

from knapsack_rl.tasks.rewards import named_reward

TRAINING = "dapo-math-17k"


def pass_at(k: int, n: int, right: int) -> float:
    """The unbiased estimate of pass@k from ``right`` successes among n samples: 1 - C(n - right, k) / C(n, k)."""
    return 1.0 - comb(n - right, k) / comb(n, k)


def scorer(n: int, k: int) -> Callable[[Mapping[str, Any], Sequence[Sequence[str]]], dict[str, float]]:
    """The function that lm-eval calls with a row and its n responses; what cannot be parsed counts as wrong."""
    judge = named_reward("math")

    def score(row: Mapping[str, Any], responses: Sequence[Sequence[str]]) -> dict[str, float]:
        (texts,) = responses
        rewards = judge([row["prompt"]] * n, list(texts), [row["answer"]] * n)
        right = sum(reward == 1.0 for reward in rewards)
        return {f"avg@{n}": right / n, f"pass@{k}": pass_at(k, n, right)}

    return score


def task(name: str, file: Path, given: argparse.Namespace) -> dict[str, Any]:
    """lm-eval's configuration of one benchmark."""
    n = given.n
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": lambda row: row["prompt"][0]["content"],
        "doc_to_target": lambda row: row["answer"],
        "process_results": scorer(n, given.k),
        "repeats": n,
        "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": n}]}],
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in (f"avg@{n}", f"pass@{given.k}")
        ],
        "generation_kwargs": {
            "until": [], "do_sample": True, "temperature": given.temperature, "top_p": 1.0,
            "max_gen_toks": given.max_tokens,
        },
        "num_fewshot": 0,
    }  # fmt: skip


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="avg@n and pass@k of a model on the paper's benchmarks.")
    parser.add_argument("model", help="a folder with a model and its tokenizer, or a hub id")
    parser.add_argument("--data", type=Path, required=True, help="the folder that prepare.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--benchmarks", nargs="+", metavar="NAME", help="default: all that are in DATA")
    parser.add_argument("--backend", choices=("vllm", "hf"), default="vllm")
    parser.add_argument("--model-args", default="", help="further arguments of lm-eval's model class, as a=1,b=2")
    parser.add_argument("--n", type=int, default=16, help="samples of each question, for avg@N")
    parser.add_argument("--k", type=int, default=16, help="for pass@K, estimated from N samples; at most N")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--max-tokens", type=int, default=3072)
    parser.add_argument("--batch-size", default="auto")
    parser.add_argument("--limit", type=int, help="evaluate on the first questions only")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    if not 1 <= given.k <= given.n:
        parser.error(f"--k {given.k} must be from 1 to --n, which is {given.n}")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print lm-eval's table, and write ``results.json`` and ``samples.jsonl``."""
    given = _parsed(argv)
    files = {path.stem: path.resolve() for path in sorted((given.data / "jsonl").glob("*.jsonl"))}
    names = given.benchmarks or [name for name in files if name != TRAINING]
    if not names or not set(names) <= set(files):
        missing = ", ".join(sorted(set(names) - set(files))) or "benchmarks"
        print(f"error: {given.data}/jsonl has no {missing}: run prepare.py", file=sys.stderr)
        return 1
    import lm_eval
    from lm_eval.utils import make_table

    seed = f",seed={given.seed}" if given.backend == "vllm" else ""
    found = lm_eval.simple_evaluate(
        model=given.backend,
        model_args=f"pretrained={given.model}{seed}" + (f",{given.model_args}" if given.model_args else ""),
        tasks=[task(name, files[name], given) for name in names],
        batch_size=given.batch_size,
        limit=given.limit,
        apply_chat_template=True,
        random_seed=given.seed,
        numpy_random_seed=given.seed,
        torch_random_seed=given.seed,
    )
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "results.json").write_text(json.dumps(found["results"], indent=1), encoding="utf-8")
    with (given.output / "samples.jsonl").open("w", encoding="utf-8") as lines:
        for name in names:
            for sample in found["samples"][name]:
                row = {"benchmark": name, "prompt_id": sample["doc"]["prompt_id"], "responses": sample["resps"][0]}
                lines.write(json.dumps(row | {f"avg@{given.n}": sample[f"avg@{given.n}"]}, ensure_ascii=False) + "\n")
    print(make_table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
