"""The fleet server: rounds, fold, strategies, merge, gate (pure), and the shell that stores, ingests and publishes.

Pure files decide on values; only `main` reads the clock, only the store writes the disk, only the export loads torch.
"""
