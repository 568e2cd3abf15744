"""What there is to learn: prompts, answers, scorers and models to start from. Import its modules by path."""
