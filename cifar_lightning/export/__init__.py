"""Trained networks for other programs: loaded from checkpoints and exported to other formats. Needs torch only."""
