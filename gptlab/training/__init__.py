"""Training: the step, the loop around it, optimizer, evaluation, and the settings of a device."""
