from __future__ import annotations

from hypothesis import settings

# How long one example takes says nothing on a machine that runs other things too.
settings.register_profile("zkc", deadline=None)
settings.load_profile("zkc")
