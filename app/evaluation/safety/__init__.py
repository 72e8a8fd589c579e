"""The figures of the safety layer (`bedside eval safety`): one file a figure in `figures/`, parts in `figure.py`."""
