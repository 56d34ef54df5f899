"""How hypothesis searches, which tests are left out unless asked for, and which files begin first.

Examples are the same in every run, and nothing complains where a busy machine is slow; `--hypothesis-profile=search`
looks at new examples each time.
"""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile("same")

LONGEST_FIRST = [
    "distributed/test_parity.py",
    "distributed/test_resume.py",
    "distributed/test_gemini.py",
    "cli/test_pretrain.py",
    "cli/test_step_benchmarks.py",
    "cli/test_failures.py",
    "unit/boosters/test_engine_adaptations.py",
    "unit/data/test_prepare.py",
]
"""Files of half a minute and more of one processor, the longest first; `--durations=100` tells of others."""


@pytest.fixture(scope="module")
def s3_server(request):
    """A server that speaks S3, for the tests of a file; `tests.s3_server.of_both` asks for each of two."""
    from tests.s3_server import serving_here  # not at the top: most files need none of it

    with serving_here(getattr(request, "param", "moto")) as server:
        yield server


def pytest_collection_modifyitems(config, items):
    leave_out_the_matrix(config, items)
    begin_with_the_longest(items)


def leave_out_the_matrix(config, items):
    """It takes half an hour: it is run by name alone."""
    if "matrix" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("matrix")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in set(left_out)]


def begin_with_the_longest(items):
    """A file stays with one process of xdist, so a long one that begins last would keep the others waiting for it."""
    places = {file: place for place, file in enumerate(LONGEST_FIRST)}

    def place(item) -> int:
        return places.get(item.path.relative_to(item.config.rootpath / "tests").as_posix(), len(places))

    items.sort(key=place)
