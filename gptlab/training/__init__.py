"""Training: the step and the loop around it, the optimizer, evaluation, and device settings."""
