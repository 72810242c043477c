"""Callbacks for training and evaluation: the learning-rate finder, reports and plots."""
