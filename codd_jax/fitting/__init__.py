"""Does a model fit on these devices, and what does it cost there: chips, counts, meshes, and the compiler's word."""
