"""The study of laptop.py with forked decays, at seven budgets instead of four: 42 cells for fewer FLOPs than its 24.

python -m experiments.sweep --config=experiments/configs/forked.py --workdir=runs/forked

Expected: 7 trunks, 34 decays; 49 % of 2.14e13 FLOPs saved, so 1.09e13 are left, where laptop.py has 1.3e13; about its 8
minutes on 2 cores (estimated from the FLOPs). The intervals are those of 8 independent sizes.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.configs.laptop import DATA, GRID, MODEL
from scaling.sweeps.config import ScheduleConfig, SweepConfig, config_dict

DENSE = dataclasses.replace(GRID, budgets=(1.3e11, 1.9e11, 2.7e11, 3.9e11, 5.6e11, 8.2e11, 1.2e12))
FORKED = ScheduleConfig("forked")


def get_config() -> ConfigDict:
    return config_dict(SweepConfig(DATA, "small_wsd", DENSE, model=MODEL, prediction=2.0, sweep=FORKED))
