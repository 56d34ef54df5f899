"""Pretrain a LLaMA with Dynamic Tanh: `python pretrain.py --help`, or docs/training.md."""

from llama_dyt.data.documents import DocumentsApart
from llama_dyt.data.loader import Order, TokenBatches, count_steps
from llama_dyt.training.dry_run import print_dry_run
from llama_dyt.training.evaluation import score_held_out
from llama_dyt.training.plan import Plan, make_plan, say
from llama_dyt.training.session import Session, run_entry


def make_batches(session: Session, dataset, **options) -> TokenBatches | DocumentsApart:
    """The batches of one data-parallel rank; `options` as of `TokenBatches`."""
    plan, run, grid = session.plan, session.run, session.grid
    batches = TokenBatches(
        dataset,
        plan.tokenizer,
        run.data.max_length,
        run.data.batch_size,
        run.optimizer.gradient_accumulation_steps,
        grid.dp_rank,
        grid.dp_size,
        **options,
    )
    apart = run.data.reset_position_ids, run.data.reset_attention_mask
    if not any(apart):
        return batches
    return DocumentsApart(batches, plan.tokenizer.eos_token_id, *apart, session.boosted.sum_over_data_ranks)


def total_steps(plan: Plan) -> int:
    """Optimizer steps of the run: --max_steps, or what the epochs over the dataset come to."""
    run = plan.run
    if run.run.max_steps is not None:
        return run.run.max_steps
    say(plan, "counting the dataset's tokens (give --max_steps to skip this) ...")
    count = count_steps(
        plan.dataset,
        plan.tokenizer,
        run.data.max_length,
        run.data.batch_size,
        run.optimizer.gradient_accumulation_steps,
        run.booster.data_parallel_size(plan.environment.world_size),
        run.data.num_epochs,
        num_workers=run.data.num_workers,
        skip_bad_lines=run.data.skip_bad_lines,
        held_out_fraction=run.validation.validation_fraction,
    )
    rows = run.sequences_per_step(plan.environment.world_size)
    say(
        plan,
        f"{count.documents:,} documents, {count.tokens:,} tokens, {count.sequences:,} sequences, {count.steps:,} steps "
        f"({count.steps * rows - count.sequences:,} of the last one's {rows:,} sequences are padding)",
    )
    return count.steps


def main() -> None:
    plan = make_plan("pretrain")
    if plan.run.run.dry_run:
        print_dry_run(plan, total_steps(plan))
        return
    session = Session(plan)
    run = plan.run
    steps = session.from_first_rank(lambda: total_steps(plan))
    validation = session.read_validation(lambda data: make_batches(session, data))
    batches = make_batches(
        session,
        plan.dataset,
        num_epochs=run.data.num_epochs,
        state=session.progress.position,
        order=Order(run.run.seed, run.data.shuffle, run.data.shuffle_buffer),
        num_workers=run.data.num_workers,
        skip_bad_lines=run.data.skip_bad_lines,
        held_out_fraction=run.validation.validation_fraction,
    )
    checkpoint = session.train(batches, steps, "pretraining", validation)
    if plan.held_out is not None and plan.is_first_process:
        score = score_held_out(checkpoint / "model", plan.dataset, plan.held_out, run.data.max_length)
        print(f"  held out    {score}", flush=True)


if __name__ == "__main__":
    run_entry(main)
