"""The whole loop in miniature, for tests: 2 budgets x 4 sizes. Its law means nothing.

python -m experiments.sweep --config=experiments/configs/smoke.py --workdir=runs/smoke

Expected: under 60 s on 2 cores, and a report with many warnings.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.configs.laptop import DATA, MODEL
from scaling.sweeps.config import GridConfig, SweepConfig, config_dict

GRID = GridConfig(
    budgets=(2e10, 5e10),
    sizes=4,
    prior_flops=2e10,
    prior_size=17e3,
    prior_exponent=0.0,
    below=1.6,
    above=2.6,
)


def get_config() -> ConfigDict:
    data = dataclasses.replace(DATA, eval_windows=32)
    return config_dict(SweepConfig(data, "small", GRID, model=MODEL, eval_points=3, prediction=2.0))
