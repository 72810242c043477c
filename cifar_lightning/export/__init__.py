"""Trained networks for other programs: read from checkpoints, written in formats of their own. Torch only."""
