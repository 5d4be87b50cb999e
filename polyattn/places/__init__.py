"""Where a score stands: positions of rows and keys."""
