"""What every test shares: eight fake CPU devices, set in the environment before anything imports JAX.

Nothing here imports JAX, so the tests of the analysis stay free of it. A variable that is already set is kept, so
that the suite can be pointed at other devices on purpose.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
