"""The parts of scripts/gpu_check: functions that yield the rows of a table."""
