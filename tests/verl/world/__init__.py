"""An environment in which verl's real trainer runs on a CPU: verl has no CPU mode of its own."""
