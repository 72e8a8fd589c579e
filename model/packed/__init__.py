"""Checkpoints stored as the C++ kernels read them: `bedside pack` writes them, a map into memory opens them."""
