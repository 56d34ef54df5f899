"""Prints docs/flags.md from the settings themselves: python scripts/flags_table.py > docs/flags.md

A test compares the page with this output, so the documented flags are those that exist.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llama_dyt.config.options import KINDS, Option
from llama_dyt.config.run import grouped_options, groups_of
from llama_dyt.convert.settings import CONVERT
from llama_dyt.convert.settings import options as convert_options
from llama_dyt.data.preparing.settings import PREPARE_DATA, options

HEAD = """# Flags

Made by `python scripts/flags_table.py > docs/flags.md`; a test keeps it true. Every flag is also a key of a YAML given
by `--config_file`, where its name has no dashes; a flag on the command line wins over the file. Hyphens may stand for
underscores. A switch takes no value and is turned off by `--no-NAME`. Where the entries differ, the order is pretrain,
finetune, benchmark, and – is an entry without the flag or without a short form. The flags of prepare_data.py and
convert.py stand at the end.
"""


def by_entry(option: Option, values: list[str]) -> str:
    """One cell: the value all entries share, or each entry's own."""
    own = [value for kind, value in zip(KINDS, values) if kind in option.entries]
    if len(set(own)) == 1:
        return own[0]
    return " / ".join(value if kind in option.entries else "–" for kind, value in zip(KINDS, values))


def row_of_one(option: Option, entry: str) -> str:
    """A flag of an entry that shares none with the others."""
    short = f"`{option.short[entry]}`" if option.short else ""
    return f"| `{option.flag}` | {short} | {shown(option.default[entry])} | {meaning(option)} |"


def row(option: Option) -> str:
    short = by_entry(option, [f"`{option.short[kind]}`" if kind in option.short else "–" for kind in KINDS])
    short = "" if short == "–" else short
    entries = "all" if len(option.entries) == len(KINDS) else ", ".join(option.entries)
    default = by_entry(option, [shown(option.default[kind]) for kind in KINDS])
    return f"| `{option.flag}` | {'' if short == '–' else short} | {default} | {entries} | {meaning(option)} |"


def meaning(option: Option) -> str:
    text = option.help.replace("|", "\\|")
    if option.choices:
        text += f" One of {', '.join(f'`{choice}`' for choice in option.choices)}."
    if option.spellings:
        text += f" Also {', '.join(f'`--{name}`' for name in option.spellings)}."
    return text


def shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default in (None, ()) else f"`{default}`"


def page() -> str:
    parts = [HEAD]
    rows: dict[str, list[str]] = {}
    for group, option in grouped_options():
        rows.setdefault(group, []).append(row(option))
    for group, lines in rows.items():
        head = "| flag | short | default | entries | meaning |\n| --- | --- | --- | --- | --- |"
        parts.append(f"## {group.capitalize()}\n\n{groups_of()[group].__doc__}\n\n{head}\n" + "\n".join(lines) + "\n")
    head = "| flag | short | default | meaning |\n| --- | --- | --- | --- |"
    for entry, what, own in (
        (PREPARE_DATA, "[Preparing text once](data.md)", options()),
        (CONVERT, "[Checkpoints of other programs and ours](conversion.md)", convert_options()),
    ):
        lines = "\n".join(row_of_one(option, entry) for option in own)
        parts.append(f"## {entry}.py\n\n{what}.\n\n{head}\n{lines}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
