"""How a model and its training are spread over processes: one strategy a plugin, over Colossal-AI.

Importing this imports nothing: settings and capabilities are read where `--help` must come at once. A module that
imports Colossal-AI imports `boosters.engine` first.
"""
