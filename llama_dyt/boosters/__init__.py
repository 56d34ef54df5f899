"""The one door to Colossal-AI: nothing outside this package imports the engine.

Importing any module of this package first imports the engine through `compat`, which stands in for three packages that
the engine imports and this project never uses; without that, `import colossalai.booster` fails where they are absent.
"""

from . import compat as compat
