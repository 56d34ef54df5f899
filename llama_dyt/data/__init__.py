"""Text in, batches out: sources, tokenizers, packing, and one loader a kind of run.

The loaders share one interface, `Step` by `Step`; import from here or from the module that a name lives in.
"""
