#!/usr/bin/env bash
# avg@16 and pass@16 on all benchmarks of prepare.py:
#   evaluate.sh runs/paper/verl-7b/global_step_1000     a checkpoint of verl: its shards are merged first
#   evaluate.sh runs/paper/trl-1.5b/calibrated/model    a model of TRL, one of its checkpoints, or a hub id
# What follows is passed to evaluate.py (--n 16 --temperature 0.6 --backend vllm ...). Needs lm-eval[vllm]==0.4.13 and
# math-verify beside knapsack-rl. PYTHON runs the evaluation; VERL_PYTHON, verl's environment, merges.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
checkpoint=${1:?"usage: evaluate.sh CHECKPOINT [options of evaluate.py]"}
shift
DATA=${DATA:-$HOME/data/paper}
PYTHON=${PYTHON:-python}
VERL_PYTHON=${VERL_PYTHON:-$PYTHON}
RESULTS=${RESULTS:-runs/paper/evaluation/$(basename "$(dirname "$checkpoint")")-$(basename "$checkpoint")}

model=$checkpoint
if [ -d "$checkpoint/actor" ]; then
    model=$checkpoint/merged
    if [ ! -f "$model/config.json" ]; then
        "$VERL_PYTHON" -m verl.model_merger merge --backend fsdp \
            --local_dir "$checkpoint/actor" --target_dir "$model"
    fi
fi
exec "$PYTHON" "$here/evaluate.py" "$model" --data "$DATA" --output "$RESULTS" "$@"
