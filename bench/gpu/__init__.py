"""The kernels of the card: checked, timed, and the whole model of full size on it. `python -m bench.gpu` does all."""
