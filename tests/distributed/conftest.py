"""The fixture that gives tests their processes."""

import pytest

from tests.distributed.harness import Pools


@pytest.fixture(scope="session")
def pool():
    """`pool(world_size).run(case, **kwargs)`: see `harness.py`. The processes live as long as the session."""
    pools = Pools()
    yield pools
    pools.close()
