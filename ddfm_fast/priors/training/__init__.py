"""Training and judging the embedded prior."""
