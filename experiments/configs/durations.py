"""N x D on one laptop: five sizes, each for four durations, for Approach 1 and a law that is fitted to no isoFLOPs.

python -m experiments.sweep --config=experiments/configs/durations.py --workdir=runs/durations

Expected: 8 minutes on 2 idle cores (estimated from its 1.0e13 FLOPs; 14 measured on busy ones). No isoFLOP minima, a
law with a wide exponent of about 0.4 [0.1, 0.8], and its prediction, 1.46 at 3.2e12 FLOPs, inside its interval.
"""

from ml_collections import ConfigDict

from experiments.configs.laptop import DATA, MODEL
from scaling.sweeps.config import DurationsConfig, SweepConfig, config_dict

DURATIONS = DurationsConfig(sizes=(15e3, 25e3, 45e3, 80e3, 150e3), tokens=(2e5, 4e5, 8e5, 1.6e6))


def get_config() -> ConfigDict:
    return config_dict(SweepConfig(DATA, "small", durations=DURATIONS, model=MODEL, prediction=2.0))
