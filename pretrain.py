"""Pretrain a LLaMA with Dynamic Tanh: `python pretrain.py --help`, or docs/training.md."""

if __name__ == "__main__":  # before what takes seconds to import
    from llama_dyt.launch.parent_watch import end_with_launcher
    from llama_dyt.training.plan.answer import answer

    end_with_launcher()
    checked = answer("pretrain")

from functools import partial

from llama_dyt.core import ranks
from llama_dyt.data.formats.sources import Source
from llama_dyt.data.loaders.documents_apart import DocumentsApart
from llama_dyt.data.loaders.packed import TokenBatches, count_steps
from llama_dyt.data.loaders.step import BatchShape
from llama_dyt.data.opening import LoaderOptions
from llama_dyt.training.callbacks.validation import read_validation
from llama_dyt.training.entry import run_entry
from llama_dyt.training.evaluation.held_out import score_held_out
from llama_dyt.training.plan import Checked, Plan, make_plan, say
from llama_dyt.training.session import Session
from llama_dyt.training.settings import sequences_per_step
from llama_dyt.training.sizing.dry_run import print_dry_run


def make_batches(
    session: Session, dataset: str | Source, options: LoaderOptions | None = None, position: dict | None = None
) -> TokenBatches | DocumentsApart:
    """The batches of one data-parallel rank; `options` None reads a dataset once, in its own order."""
    plan, run, grid = session.plan, session.run, session.grid
    shape = BatchShape(run.data.batch_size, run.optimizer.gradient_accumulation_steps, grid.dp_rank, grid.dp_size)
    batches = TokenBatches(dataset, plan.tokenizer, run.data.max_length, shape, options, position)
    apart = run.data.reset_position_ids, run.data.reset_attention_mask
    if not any(apart):
        return batches
    return DocumentsApart(batches, plan.tokenizer.eos_token_id, *apart, session.boosted.sum_over_data_ranks)


def total_steps(plan: Plan) -> int | None:
    """Optimizer steps of the run: --max_steps, or what the epochs over the dataset come to; None without a dataset."""
    run = plan.run
    if run.run.max_steps is not None or plan.dataset is None:
        return run.run.max_steps
    say(plan, "counting the dataset's tokens (give --max_steps to skip this) ...")
    rows = sequences_per_step(run, plan.environment.world_size)
    count = count_steps(plan.dataset, plan.tokenizer, run.data.max_length, rows, plan.loader_options)
    say(
        plan,
        f"{count.documents:,} documents, {count.tokens:,} tokens, {count.sequences:,} sequences, {count.steps:,} steps "
        f"({count.steps * rows - count.sequences:,} of the last one's {rows:,} sequences are padding)",
    )
    return count.steps


def main(checked: Checked | None = None) -> None:
    plan = make_plan("pretrain", checked=checked)
    if plan.run.run.dry_run:
        print_dry_run(plan, total_steps(plan))
        return
    session = Session(plan)
    run = plan.run
    steps = ranks.from_first(lambda: total_steps(plan), "counting the dataset's tokens")
    validation = read_validation(plan, lambda data: make_batches(session, data))
    batches = ranks.together(
        lambda: make_batches(session, plan.dataset, plan.loader_options, session.progress.position), "opening the data"
    )
    checkpoint = session.train(batches, steps, "pretraining", validation)
    if run.validation.score_held_out and plan.is_first_process:
        texts = plan.sample.train_glob, plan.sample.validation_file
        score = score_held_out(checkpoint / "model", *texts, run.data.max_length)
        print(f"  held out    {score}", flush=True)


if __name__ == "__main__":
    run_entry(partial(main, checked))
