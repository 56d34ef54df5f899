"""Pretrain a LLaMA with Dynamic Tanh: `python pretrain.py --help`, or docs/training.md."""

from llama_dyt.data.loader import TokenBatches, count_steps
from llama_dyt.data.sources import Source
from llama_dyt.data.validation import open_training
from llama_dyt.training.dry_run import print_dry_run
from llama_dyt.training.evaluation import score_held_out
from llama_dyt.training.plan import Plan, make_plan, say
from llama_dyt.training.session import Session, run_entry


def open_text(plan: Plan) -> Source:
    """What is trained on."""
    return open_training(plan.dataset, plan.run.validation.validation_fraction, **plan.source_options)


def make_batches(
    plan: Plan, source: Source, dp_rank: int, dp_size: int, num_epochs: int = 1, position: dict | None = None
) -> TokenBatches:
    """The batches of one data-parallel rank."""
    run = plan.run
    return TokenBatches(
        source,
        plan.tokenizer,
        run.data.max_length,
        run.data.batch_size,
        run.optimizer.gradient_accumulation_steps,
        dp_rank,
        dp_size,
        num_epochs,
        position,
    )


def total_steps(plan: Plan) -> int:
    """Optimizer steps of the run: --max_steps, or what the epochs over a local dataset come to, whichever is less."""
    run = plan.run
    if run.run.max_steps is not None:
        return run.run.max_steps
    say(plan, "counting the dataset's tokens (give --max_steps to skip this) ...")
    count = count_steps(
        open_text(plan),
        plan.tokenizer,
        run.data.max_length,
        run.data.batch_size,
        run.optimizer.gradient_accumulation_steps,
        run.booster.data_parallel_size(plan.environment.world_size),
        run.data.num_epochs,
    )
    say(plan, f"{count.documents:,} documents, {count.tokens:,} tokens, {count.steps:,} steps")
    return count.steps


def main() -> None:
    plan = make_plan("pretrain")
    if plan.run.run.dry_run:
        print_dry_run(plan, total_steps(plan))
        return
    session = Session(plan)
    run, grid = plan.run, session.grid
    steps = session.from_first_rank(lambda: total_steps(plan))
    validation = session.read_validation(lambda source: make_batches(plan, source, grid.dp_rank, grid.dp_size))
    position = session.progress.position
    batches = make_batches(plan, open_text(plan), grid.dp_rank, grid.dp_size, run.data.num_epochs, position)
    checkpoint = session.train(batches, steps, "pretraining", validation)
    if plan.held_out is not None and plan.is_first_process:
        score = score_held_out(checkpoint / "model", plan.dataset, plan.held_out, run.data.max_length)
        print(f"  held out    {score}", flush=True)


if __name__ == "__main__":
    run_entry(main)
