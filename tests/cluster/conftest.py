"""What the tests of several machines share: corpus and finished run of the entries' tests."""

from tests.cli.conftest import corpus, pretrained

__all__ = ["corpus", "pretrained"]
