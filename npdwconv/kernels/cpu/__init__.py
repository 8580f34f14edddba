"""The CPU room: kernels in Numba with explicit vectors."""
