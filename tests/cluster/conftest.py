"""What the tests of several machines share: the corpus of the entries' tests."""

from tests.cli.conftest import corpus

__all__ = ["corpus"]
