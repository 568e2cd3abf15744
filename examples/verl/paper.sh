#!/usr/bin/env bash
# The paper's setting (arXiv 2509.25849): Qwen2.5-Math-7B on DAPO-Math-17k, 256 prompts x 8 rollouts a step,
# one node with eight GPUs. Everything except data, GPUs and micro-batches is printed by `knapsack-rl verl-args --paper` and
# repeated below word for word. For the authors' own rule, 2 to 128 rollouts of every prompt, add --rule paper (here
# +knapsack.rule=paper).
# The published data set repeats each prompt many times: with +knapsack.prompt_id=content the copies share one belief.
# verl 0.9 cannot clip advantages to [-5, 5] as the authors' code does. A single success among N rollouts has the largest
# advantage: at most 5 in groups of up to 26, and 11 in a group of 128.
# A correct answer is rewarded 1 and a wrong one -1, so the default success_threshold of 1 fits.
set -euo pipefail
DATA=${DATA:-$HOME/data}

python -m verl.trainer.main_ppo \
    data.train_files=$DATA/dapo-math-17k.parquet \
    data.val_files=$DATA/aime-2024.parquet \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
    trainer.n_gpus_per_node=8 \
    trainer.nnodes=1 \
    trainer.save_freq=50 \
    trainer.project_name=knapsack \
    trainer.experiment_name=qwen2.5_math_7b_dapo17k \
    algorithm.adv_estimator=grpo \
    algorithm.rollout_correction.rollout_is=token \
    algorithm.rollout_correction.rollout_is_threshold=2.0 \
    data.train_batch_size=256 \
    data.max_prompt_length=2048 \
    data.max_response_length=4096 \
    data.truncation=left \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-7B \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.optim.lr_warmup_steps=0 \
    actor_rollout_ref.actor.optim.weight_decay=0.0 \
    actor_rollout_ref.actor.clip_ratio_low=0.2 \
    actor_rollout_ref.actor.clip_ratio_high=0.28 \
    actor_rollout_ref.actor.clip_ratio_c=10.0 \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.rollout.top_p=1.0 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.85 \
    actor_rollout_ref.rollout.calculate_log_probs=True \
    actor_rollout_ref.rollout.val_kwargs.n=16 \
    actor_rollout_ref.rollout.val_kwargs.temperature=0.6 \
    actor_rollout_ref.rollout.val_kwargs.top_p=1.0 \
    actor_rollout_ref.rollout.val_kwargs.do_sample=True \
    trainer.test_freq=10 \
    trainer.total_training_steps=1000 \
    trainer.v1.trainer_mode=sync \
    +hydra.callbacks.knapsack._target_=knapsack_rl.verl.CheckConfig \
    +actor_rollout_ref.rollout.agent.agent_loop_manager_class=knapsack_rl.verl.KnapsackAgentLoopManager \
    trainer.v1.sampler.custom_sampler.path=pkg://knapsack_rl.verl \
    trainer.v1.sampler.custom_sampler.name=KnapsackReplayBuffer \
    trainer.checkpoint_callback_class=knapsack_rl.verl.SaveBeliefs \
    +knapsack.prompt_id=content \
    "$@"
