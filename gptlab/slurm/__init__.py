"""Runs as jobs of a Slurm cluster: submission, the job on the node, and the state of the queue."""
