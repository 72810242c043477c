"""The fast path: a training step as compiled code. Torch only, and the only place with private names of torch."""
