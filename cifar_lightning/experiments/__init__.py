"""Many runs: sweeps, searches and studies."""
