"""How a network learns: optimizers and schedules by name, and the learning-rate range test. Torch only."""
