"""What a run will need on so many GPUs, computed without one."""
