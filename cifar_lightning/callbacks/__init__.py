"""What a training or an evaluation can be given besides: the learning-rate finder, reports and pictures."""
