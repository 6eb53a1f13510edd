"""What one does to a run beside training it."""
