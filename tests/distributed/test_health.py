"""A rank that is not as the others is found and named, under any booster."""

import re

import pytest

from tests.distributed import health_cases
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "layout",
    [
        Layout("fsdp", 2),
        *(pytest.param(one, marks=pytest.mark.matrix) for one in (Layout("zero2", 2), Layout("gemini", 2), hybrid(2))),
    ],
    ids=str,
)
def test_a_rank_that_waits_for_its_data_is_named(pool, layout: Layout):
    results = pool(2).run(health_cases.slow_data, layout=layout, seconds=0.4, num_steps=6)
    for told, figures in results:
        (line,) = [line for line in told if "rank 1" in line]
        assert re.search(
            r"is slow: a layer .*x the median, data wait (0\.[4-9]|[1-9]).* in [3-6] records in a row", line
        )
        assert figures["slowest_rank"] == 1 and figures["slowest_rank_factor"] > 1.5
        assert figures["data_wait_most"] >= 0.4
