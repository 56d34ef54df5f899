"""Norm layers of a decoder: Dynamic Tanh and RMSNorm, their registry (`spec`), and where alpha starts."""

from llama_dyt.core.lazily import lazy_names

_HOMES = {
    "DynamicTanh": "llama_dyt.norms.layers.dynamic_tanh",
    "NORMS": "llama_dyt.norms.spec",
    "NormSpec": "llama_dyt.norms.spec",
    "PUBLISHED_ALPHAS": "llama_dyt.norms.alphas",
    "RMSNorm": "llama_dyt.norms.layers.rms_norm",
    "default_alphas": "llama_dyt.norms.alphas",
    "dynamic_tanh": "llama_dyt.norms.layers.dynamic_tanh",
    "dynamic_tanh_formula": "llama_dyt.norms.layers.dynamic_tanh",
    "use_kernel": "llama_dyt.norms.layers.dynamic_tanh",
}
__getattr__, __all__ = lazy_names(__name__, _HOMES)
