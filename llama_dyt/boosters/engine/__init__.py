"""What is patched in Colossal-AI, each with the symbol it replaces.

Importing this imports the engine through `compat`, which stands in for three packages that the engine imports and this
project never uses; without that, `import colossalai.booster` fails where they are absent.
"""

import llama_dyt.boosters.engine.compat  # noqa: F401
