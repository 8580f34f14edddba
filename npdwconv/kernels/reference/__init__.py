"""NumPy kernels: the specification, written to be read."""
