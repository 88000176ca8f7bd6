"""Linear heads that shrink towards a start, and the choice of their penalty."""
