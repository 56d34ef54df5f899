"""Convert checkpoints of other programs and ours: `python convert.py --help`, or docs/conversion.md."""

if __name__ == "__main__":  # before what takes seconds to import
    from llama_dyt.launch.parent_watch import end_with_launcher

    end_with_launcher()

from collections.abc import Sequence

from llama_dyt.convert.settings import parse_conversion
from llama_dyt.core.program import run_program


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse_conversion(argv)
    from llama_dyt.convert.run import convert

    convert(settings, say=print)


if __name__ == "__main__":
    run_program(main)
