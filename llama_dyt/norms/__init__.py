"""Norm layers of a decoder: Dynamic Tanh and RMSNorm, their registry, and where alpha starts."""

from llama_dyt.norms.alphas import PUBLISHED_ALPHAS, default_alphas
from llama_dyt.norms.dynamic_tanh import DynamicTanh, dynamic_tanh, dynamic_tanh_formula, use_kernel
from llama_dyt.norms.dynamic_tanh_op import forward_op, suits
from llama_dyt.norms.registry import NORMS, build_norm
from llama_dyt.norms.rms_norm import RMSNorm

__all__ = ["NORMS", "PUBLISHED_ALPHAS", "DynamicTanh", "RMSNorm", "build_norm", "default_alphas"]
__all__ += ["dynamic_tanh", "dynamic_tanh_formula", "use_kernel"]

use_kernel(forward_op, suits)
