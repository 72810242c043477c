"""The fast path: compiled training steps. Needs torch only, and is the only place that uses private names of torch."""
