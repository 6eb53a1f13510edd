"""Evaluation of checkpoints, and the report on a run."""
