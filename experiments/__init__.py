"""Experiments: one file a question, each a thin command line over the library; run them from the checkout."""

import os

# Before anything imports transformers, which would advise installing PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
