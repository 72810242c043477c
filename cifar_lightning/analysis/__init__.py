"""Analysis of networks: metrics, Monte-Carlo dropout, signals and plots. Needs torch only."""
