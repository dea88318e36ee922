"""Eight sizes from 20M to 3B, each for 20 tokens a parameter, on C4.

python -m experiments.sweep --config=experiments/configs/ladder.py --workdir=runs/ladder

Their speed on a machine, without the text, in minutes on one accelerator:

    python -m tools.benchmark --config=experiments/configs/ladder.py --suppose_vocab=32000

Expected: 8 cells and 2.1e21 FLOPs; as a sweep it was planned, not run.
"""

from ml_collections import ConfigDict

from experiments.configs.chinchilla import DATA
from scaling.sweeps.config import DurationsConfig, SweepConfig, config_dict

SIZES = (20e6, 70e6, 124e6, 350e6, 760e6, 1.4e9, 2.1e9, 3e9)


def get_config() -> ConfigDict:
    durations = DurationsConfig(sizes=SIZES, tokens_per_parameter=(20.0,))
    return config_dict(SweepConfig(DATA, "chinchilla", durations=durations, precision="bf16"))
