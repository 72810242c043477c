"""What a network is worth: metrics, Monte-Carlo dropout, signals and pictures. Torch only."""
