"""Command lines over `codd_jax.io`: published checkpoints in, converted folders out."""
