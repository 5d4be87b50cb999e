"""The ways to run a problem: the definition, the blockwise engine, kernels of the libraries."""
