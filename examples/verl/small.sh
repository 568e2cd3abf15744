#!/usr/bin/env bash
# Qwen2.5-0.5B on GSM8K, one node with one GPU, for about an hour. Prepare the data with verl's own script:
#   python examples/data_preprocess/gsm8k.py --local_save_dir ~/data/gsm8k        (in verl's repository)
# The last block is printed by `knapsack-rl verl-args --max 32`.
set -euo pipefail
DATA=${DATA:-$HOME/data/gsm8k}

python -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_files=$DATA/train.parquet \
    data.val_files=$DATA/test.parquet \
    data.train_batch_size=128 \
    data.max_prompt_length=512 \
    data.max_response_length=512 \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-0.5B-Instruct \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16 \
    trainer.n_gpus_per_node=1 \
    trainer.nnodes=1 \
    trainer.total_epochs=5 \
    trainer.save_freq=20 \
    trainer.test_freq=10 \
    trainer.logger='["console","tensorboard"]' \
    trainer.project_name=knapsack \
    trainer.experiment_name=gsm8k_small \
    trainer.v1.trainer_mode=sync \
    +hydra.callbacks.knapsack._target_=knapsack_rl.verl.CheckConfig \
    +actor_rollout_ref.rollout.agent.agent_loop_manager_class=knapsack_rl.verl.KnapsackAgentLoopManager \
    trainer.v1.sampler.custom_sampler.path=pkg://knapsack_rl.verl \
    trainer.v1.sampler.custom_sampler.name=KnapsackReplayBuffer \
    trainer.checkpoint_callback_class=knapsack_rl.verl.SaveBeliefs \
    +knapsack.max_n=32 \
    "$@"
