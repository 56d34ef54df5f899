"""The fixtures that give tests their processes, and the matrix its page."""

import pytest

from tests.distributed.harness import Pools


def pytest_addoption(parser):
    parser.addoption("--write-table", action="store_true", help="write docs/parallelism.md from the matrix that is run")


@pytest.fixture(scope="session")
def pool():
    """`pool(world_size).run(case, **kwargs)`: see `harness.py`. The processes live as long as the session."""
    pools = Pools()
    yield pools
    pools.close()


@pytest.fixture(scope="session")
def matrix_results(request):
    """Cell → how far its gradients were off; None where it failed; at the end it goes into the page."""
    results = {}
    yield results
    if results and request.config.getoption("--write-table"):
        from tests.distributed.table import write_page

        write_page(results)
