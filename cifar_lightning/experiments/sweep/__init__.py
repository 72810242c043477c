"""Many trainings that differ in values alone, all at once."""
