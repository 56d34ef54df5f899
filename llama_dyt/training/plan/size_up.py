"""The last stage: what of a run its size decides. What it would take is printed by `sizing.dry_run`."""

from __future__ import annotations

from dataclasses import replace

from llama_dyt.training.plan.plan import Plan
from llama_dyt.training.sizing.recompute_share import choose_share


def size_up(plan: Plan) -> Plan:
    """The plan with the share of layers that recompute, where --auto_checkpointing leaves it to the memory there is."""
    if not plan.run.speed.auto_checkpointing:
        return plan
    chosen = choose_share(plan.run, plan.model_config, plan.environment, plan.device, plan.adapter)
    remedy = "take smaller batches, more processes or a plugin that cuts more"
    warnings = [] if chosen.fits else [f"--auto_checkpointing: {chosen}; {remedy}"]
    run = plan.run.replace(selective_checkpointing=chosen.share, auto_checkpointing=False)
    return replace(plan, run=run, recomputing=chosen, warnings=plan.warnings + warnings)
