"""LLaMA-family decoders with Dynamic Tanh, pretrained and fine-tuned on Colossal-AI.

Importing the package does one thing to the world, because users rely on it: transformers' Auto classes know
`llama_dyt` models from then on.
"""

from llama_dyt.registration import register_models

__version__ = "0.1.0"

register_models()
