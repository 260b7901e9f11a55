"""Kernels of the quantised linear: one contract, several ways to keep it (see ``dispatch``)."""
