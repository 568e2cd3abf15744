"""SmolLM2-135M on one GPU: weights in parts, a lean Llama, and the study of `benchmarks.gpu_study`."""
