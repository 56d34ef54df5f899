"""Fine-tune a model on prompts and completions: `python finetune.py --help`, or docs/finetuning.md."""

if __name__ == "__main__":  # before what takes seconds to import
    from llama_dyt.launch.parent_watch import end_with_launcher
    from llama_dyt.training.plan.answer import answer

    end_with_launcher()
    checked = answer("finetune")

from functools import partial

from llama_dyt.core import ranks
from llama_dyt.data.formats.sources import TextSource
from llama_dyt.data.loaders.examples import TooLong
from llama_dyt.data.loaders.instructions import InstructionBatches
from llama_dyt.data.loaders.step import BatchShape
from llama_dyt.data.validation_sets import open_training
from llama_dyt.training.callbacks.samples import read_asked_prompts
from llama_dyt.training.callbacks.validation import read_validation
from llama_dyt.training.entry import run_entry
from llama_dyt.training.plan import Checked, Plan, make_plan, say
from llama_dyt.training.session import Session
from llama_dyt.training.sizing.dry_run import print_dry_run


def open_examples(plan: Plan) -> TextSource:
    """What is trained on."""
    return open_training(plan.dataset, plan.run.validation.validation_fraction, plan.read_options)


def make_batches(
    plan: Plan, source: TextSource, dp_rank: int, dp_size: int, num_epochs: int = 1, position: dict | None = None
) -> InstructionBatches:
    """The batches of one data-parallel rank; prompts and padding carry no loss."""
    run = plan.run
    return InstructionBatches(
        source,
        plan.tokenizer,
        run.data.max_length,
        BatchShape(run.data.batch_size, run.optimizer.gradient_accumulation_steps, dp_rank, dp_size),
        num_epochs,
        position,
        seed=run.run.seed,
        too_long=TooLong(run.data.too_long == "drop", run.data.truncation_side == "left"),
        pack=run.data.pack,
        # Stages exchange tensors of one shape, and what cuts sequences must be able to divide them.
        pad_to_max_length=run.booster.pp > 1 or run.booster.sequence_parallelism is not None,
    )


def total_steps(plan: Plan, batches: InstructionBatches) -> int:
    """Optimizer steps of the run: its epochs, or --max_steps where that is less."""
    limit = plan.run.run.max_steps
    return batches.num_steps if limit is None else min(limit, batches.num_steps)


def in_words(plan: Plan, batches: InstructionBatches) -> str:
    """What was read, and what became of it."""
    read, data = batches.examples, plan.run.data
    side = " at the left" if data.truncation_side == "left" else ""
    left_out = f"{read.num_too_long} longer than that and " if data.too_long == "drop" else ""
    packed = f", packed into {batches.num_sequences:,} sequences" if data.pack else ""
    return (
        f"{len(read.examples):,} examples ({read.num_truncated} cut{side} at --max_length {data.max_length}, {left_out}"
        f"{read.num_dropped} without room for a completion left out, {read.num_bad_lines} unusable lines){packed}"
    )


def main(checked: Checked | None = None) -> None:
    plan = make_plan("finetune", checked=checked)
    if plan.run.run.dry_run and plan.dataset is None:
        print_dry_run(plan, plan.run.run.max_steps)
        return
    if plan.run.run.dry_run:
        dp_size = plan.run.booster.data_parallel_size(plan.environment.world_size)
        with make_batches(plan, open_examples(plan), 0, dp_size, plan.run.data.num_epochs) as batches:
            print_dry_run(plan, total_steps(plan, batches))
        return
    session = Session(plan)
    dp_rank, dp_size = session.grid.dp_rank, session.grid.dp_size
    validation = read_validation(plan, lambda source: make_batches(plan, source, dp_rank, dp_size))
    asked = read_asked_prompts(plan)
    num_epochs, position = plan.run.data.num_epochs, session.progress.position
    batches = ranks.together(
        lambda: make_batches(plan, open_examples(plan), dp_rank, dp_size, num_epochs, position), "reading the examples"
    )
    say(plan, in_words(plan, batches))
    session.train(batches, total_steps(plan, batches), "fine-tuning", validation, asked)


if __name__ == "__main__":
    run_entry(partial(main, checked))
