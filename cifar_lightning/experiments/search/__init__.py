"""A search: trainings whose options Optuna draws from a space."""
