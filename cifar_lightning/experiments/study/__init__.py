"""A study: each of some configs trained with each of some seeds, and one page that compares them."""
