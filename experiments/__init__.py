"""Experiments: one file a question, each a thin command line over the library; run them from the checkout."""
