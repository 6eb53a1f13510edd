"""The run: engines, optimizer and the loop."""
