"""LoRA on the project's models, in peft's format on disk: a small trained part beside frozen weights.

Not peft itself: it puts a wrapper around each module, so that `q_proj.weight` becomes `q_proj.base_layer.weight`, and
neither the names that checkpoints promise nor what tensor parallelism replaces would be found. Here a module keeps its
class, its weight and its name and gets parameters more, named as peft names them in its files; so an adapter made by
either is the other's too. peft is needed for none of it.

Order of reading: `adapter` (what an adapter is), `choosing` (from flags), `peft_files` (from a folder, and into one),
`modules` (what it does in a model), `starting` (its first values), `merging` (the way back to plain weights).
"""

from llama_dyt.core.lazily import lazy_names

_HOMES = {
    "Adapter": "llama_dyt.models.adapters.adapter",
    "AdapterFiles": "llama_dyt.models.adapters.peft_files",
    "StartingAdapter": "llama_dyt.models.adapters.starting",
    "adapter_asked_for": "llama_dyt.models.adapters.choosing",
    "attach": "llama_dyt.models.adapters.modules",
    "attached": "llama_dyt.models.adapters.modules",
    "count": "llama_dyt.models.adapters.counting",
    "merge": "llama_dyt.models.adapters.merging",
    "merge_into": "llama_dyt.models.adapters.merging",
    "read_adapter": "llama_dyt.models.adapters.peft_files",
    "trained_in_words": "llama_dyt.models.adapters.counting",
    "write_config": "llama_dyt.models.adapters.peft_files",
}
__getattr__, __all__ = lazy_names(__name__, _HOMES)
