"""Fine-tune a model on prompts and completions: `python finetune.py --help`, or docs/finetuning.md."""

from llama_dyt.data.instructions import InstructionBatches
from llama_dyt.training.dry_run import print_dry_run
from llama_dyt.training.plan import Plan, make_plan, say
from llama_dyt.training.session import Session, run_entry


def make_batches(plan: Plan, dp_rank: int, dp_size: int, position: dict | None) -> InstructionBatches:
    """The batches of one data-parallel rank; prompts and padding carry no loss."""
    run = plan.run
    return InstructionBatches(
        plan.dataset,
        plan.tokenizer,
        run.data.max_length,
        run.data.batch_size,
        run.optimizer.gradient_accumulation_steps,
        dp_rank,
        dp_size,
        run.data.num_epochs,
        position,
        seed=run.run.seed,
        task=run.data.task_name,
        # Stages exchange tensors of one shape, and what cuts sequences must be able to divide them.
        pad_to_max_length=run.booster.pp > 1 or run.booster.sequence_parallelism is not None,
        skip_bad_lines=run.data.skip_bad_lines,
    )


def total_steps(plan: Plan, batches: InstructionBatches) -> int:
    """Optimizer steps of the run: its epochs, or --max_steps where that is less."""
    limit = plan.run.run.max_steps
    return batches.num_steps if limit is None else min(limit, batches.num_steps)


def main() -> None:
    plan = make_plan("finetune")
    if plan.run.run.dry_run:
        with make_batches(plan, 0, plan.run.booster.data_parallel_size(plan.environment.world_size), None) as batches:
            print_dry_run(plan, total_steps(plan, batches))
        return
    session = Session(plan)
    batches = make_batches(plan, session.grid.dp_rank, session.grid.dp_size, session.progress.position)
    read = batches.examples
    say(
        plan,
        f"{len(read.examples):,} examples ({read.num_truncated} cut at --max_length {plan.run.data.max_length}, "
        f"{read.num_dropped} without room for a completion left out, {read.num_bad_lines} unusable lines)",
    )
    session.train(batches, total_steps(plan, batches), "fine-tuning")


if __name__ == "__main__":
    run_entry(main)
