"""Proof on a user's own configuration and machine that a killed run equals one that was not."""
