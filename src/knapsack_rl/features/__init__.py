"""Features of prompts, for beliefs that learn from all prompts at once."""
