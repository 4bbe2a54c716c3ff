"""The demo's world: a generator of word problems, a tokenizer for it, the training of its bundle, and its report."""
