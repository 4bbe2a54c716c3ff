"""Training: corruption, objectives, the cache of hidden states, and the optax step that fits parameters to data."""
