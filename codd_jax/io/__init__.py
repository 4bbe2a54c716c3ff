"""Files in and out: checkpoints, circuits, adapters, hub snapshots. No mathematics lives here."""
