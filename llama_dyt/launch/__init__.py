"""What happens around a run. Importing this imports nothing; of the modules here `process_group` alone needs torch."""

DEFAULT_TIMEOUT_SECONDS = 600
"""How long ranks wait for one another. NCCL's own: what users of several machines know."""
