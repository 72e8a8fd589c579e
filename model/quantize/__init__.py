"""BF16, F32 or FP8 checkpoints to INT4 in compressed-tensors' `pack-quantized` layout, a layer at a time."""
