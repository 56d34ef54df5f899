"""How hypothesis searches: the same examples in every run, and no complaint where a busy machine is slow.

`--hypothesis-profile=search` looks at new examples each time.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile("same")
