"""Code compiled for this machine's processor, where it has a C compiler; without one, PyTorch does the same work."""
