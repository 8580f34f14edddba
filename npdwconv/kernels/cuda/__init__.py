"""The CUDA room: kernels in numba.cuda, written out for each specification."""
