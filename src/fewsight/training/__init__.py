"""Training: the plan, the batches, the loop, its state, and the session that the `train` command calls."""
