"""All operations of the GPU by their names in model.kernels.gpu.reference, where they are described."""

from model.kernels.gpu.attention import attend_decode, attend_prefill
from model.kernels.gpu.linear import linear
from model.kernels.gpu.moe import experts
from model.kernels.gpu.norm import add_norm, rms_norm
from model.kernels.gpu.projection import project
from model.kernels.gpu.rope import norm_rope_store
from model.kernels.gpu.router import add_norm_route
from model.kernels.gpu.sampling import penalize, top_logits

__all__ = [
    "add_norm",
    "add_norm_route",
    "attend_decode",
    "attend_prefill",
    "experts",
    "linear",
    "norm_rope_store",
    "penalize",
    "project",
    "rms_norm",
    "top_logits",
]
