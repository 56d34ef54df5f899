"""What the status.json of a run says, wherever its files are: `python scripts/run_status.py s3://bucket/runs/a`.

Prints nothing where there is none; a store that cannot be read is told in one line, with status 2.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llama_dyt.core.errors import EXIT_STATUS, ConfigurationError
from llama_dyt.core.store import at

STATUS_FILE = "status.json"
"""As training/callbacks/status.py has it, which takes a second to import."""


def main(save_dir: str) -> int:
    try:
        print((at(save_dir) / STATUS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (ConfigurationError, OSError) as error:
        print(f"error: {save_dir}/{STATUS_FILE} cannot be read: {error}", file=sys.stderr)
        return EXIT_STATUS
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
