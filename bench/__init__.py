"""Figures of the program on the machine at hand; each script prints one JSON line last."""
