"""Values of rollouts under the loss in use, as a rule to compare with the paper's value."""
