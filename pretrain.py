"""Pretrain a LLaMA with Dynamic Tanh: `python pretrain.py --help`, or docs/training.md."""

from llama_dyt.data.documents import DocumentsApart
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
    session: Session, source: Source, num_epochs: int = 1, position: dict | None = None
) -> TokenBatches | DocumentsApart:
    """The batches of one data-parallel rank."""
    plan, run, grid = session.plan, session.run, session.grid
    batches = TokenBatches(
        source,
        plan.tokenizer,
        run.data.max_length,
        run.data.batch_size,
        run.optimizer.gradient_accumulation_steps,
        grid.dp_rank,
        grid.dp_size,
        num_epochs,
        position,
    )
    apart = run.data.reset_position_ids, run.data.reset_attention_mask
    if not any(apart):
        return batches
    return DocumentsApart(batches, plan.tokenizer.eos_token_id, *apart, session.boosted.sum_over_data_ranks)


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
    run = plan.run
    steps = session.from_first_rank(lambda: total_steps(plan))
    validation = session.read_validation(lambda source: make_batches(session, source))
    batches = make_batches(session, open_text(plan), run.data.num_epochs, session.progress.position)
    checkpoint = session.train(batches, steps, "pretraining", validation)
    if plan.held_out is not None and plan.is_first_process:
        score = score_held_out(checkpoint / "model", plan.dataset, plan.held_out, run.data.max_length)
        print(f"  held out    {score}", flush=True)


if __name__ == "__main__":
    run_entry(main)
