"""Rates of this machine: the step, the data path, checkpoints, collectives."""
