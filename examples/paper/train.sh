#!/usr/bin/env bash
# The paper's training runs on what prepare.py wrote:
#   train.sh verl 7b      Qwen2.5-Math-7B, one node of eight GPUs: ../verl/paper.sh (256 x 8 rollouts a step)
#   train.sh verl 1.5b    the same with Qwen2.5-Math-1.5B
#   train.sh trl 1.5b     TRL and vLLM on one GPU of 80 GB, with a quarter of the rollouts a step
# What follows is passed to the trainer: overrides of verl, or options of `knapsack-rl train` (--rules uniform,calibrated).
# The models' context is 4,096 tokens, prompt included: verl's vLLM server ends answers there, whatever its
# max_response_length.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
usage="usage: train.sh verl|trl 1.5b|7b [settings of the trainer]"
trainer=${1:?"$usage"}
size=${2:?"$usage"}
shift 2
case $size in
    1.5b) name=Qwen/Qwen2.5-Math-1.5B ;;
    7b) name=Qwen/Qwen2.5-Math-7B ;;
    *) echo "$usage" >&2; exit 2 ;;
esac
DATA=${DATA:-$HOME/data/paper}
MODEL=${MODEL:-$name}
OUTPUT=${OUTPUT:-$PWD/runs/paper/$trainer-$size}

case $trainer in
    verl)
        DATA=$DATA/parquet exec bash "$here/../verl/paper.sh" \
            actor_rollout_ref.model.path="$MODEL" \
            reward.custom_reward_function.path="$here/judge.py" \
            trainer.n_gpus_per_node="${GPUS:-8}" \
            trainer.experiment_name="qwen2.5_math_${size}_dapo17k" \
            trainer.default_local_dir="$OUTPUT" \
            "$@"
        ;;
    trl)
        # 512 rollouts a step, 64 x 8 on average, in two updates of 256, as many as verl's mini-batch of 32 x 8 has.
        exec knapsack-rl train \
            --model "$MODEL" \
            --dataset "$DATA/jsonl/dapo-math-17k.jsonl" \
            --reward math \
            --output "$OUTPUT" \
            --average 8 \
            --steps 2000 \
            --per_device_train_batch_size 8 \
            --gradient_accumulation_steps 32 \
            --steps_per_generation 64 \
            --learning_rate 1e-6 \
            --lr_scheduler_type constant \
            --epsilon 0.2 \
            --epsilon_high 0.28 \
            --beta 0.0 \
            --temperature 1.0 \
            --max_completion_length 3072 \
            --bf16 true \
            --gradient_checkpointing true \
            --use_vllm true \
            --vllm_mode colocate \
            --vllm_gpu_memory_utilization 0.3 \
            --vllm_max_model_length 4096 \
            --save_steps 100 \
            "$@"
        ;;
    *) echo "$usage" >&2; exit 2 ;;
esac
