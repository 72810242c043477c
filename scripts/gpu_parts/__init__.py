"""The parts of scripts/gpu_check: each is a function that yields the rows of a table."""
