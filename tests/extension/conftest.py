"""The corpus of the entries' tests serves these too."""

from tests.cli.conftest import corpus

__all__ = ["corpus"]
