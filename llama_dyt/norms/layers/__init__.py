"""The layers themselves, of torch alone: a copy of each lies in the folders of models that have it.

Whoever imports one from here gets the kernels with it, which the copies do without.
"""

from llama_dyt.norms.kernels.operator import forward_op, suits
from llama_dyt.norms.layers.dynamic_tanh import use_kernel

use_kernel(forward_op, suits)
