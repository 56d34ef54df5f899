"""Stands for `llama_dyt.norms.spec` in a saved model's folder: the norms whose files lie there."""

from llama_dyt.norms.norm_spec import ATTENTION, FEED_FORWARD, FINAL, NormSpec

__all__ = ["ATTENTION", "FEED_FORWARD", "FINAL", "NORMS", "NormSpec"]


class _Norms(dict):
    def register(self, norm: NormSpec) -> NormSpec:
        self[norm.name] = norm
        return norm


NORMS = _Norms()
