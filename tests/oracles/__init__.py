"""Independent oracles: NumPy enumerations and plain Python twins of jitted code."""
