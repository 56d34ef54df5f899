"""The fixtures that give tests their processes, and the matrix its page."""

import pytest

from tests.distributed.harness import Pools


def pytest_addoption(parser):
    parser.addoption("--write-table", action="store_true", help="write docs/parallelism.md from the matrix that is run")


def pytest_collection_modifyitems(config, items):
    """The matrix takes half an hour: it is run by name alone."""
    if "matrix" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("matrix")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in set(left_out)]


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
