"""What every part may use and knows neither models nor runs. This file imports nothing: `core.ranks` loads torch."""
