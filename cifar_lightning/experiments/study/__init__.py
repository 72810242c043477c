"""Studies: train several configs with several seeds, and compare them on one page."""
