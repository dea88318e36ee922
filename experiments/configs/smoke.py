"""The whole loop in under a minute: the laptop study in miniature, for tests. Its law means nothing.

python -m experiments.sweep --config=experiments/configs/smoke.py --workdir=runs/smoke
"""

from ml_collections import ConfigDict

from experiments.configs import laptop


def get_config() -> ConfigDict:
    config = laptop.get_config()
    config.data.eval_windows = 32
    config.grid = ConfigDict(
        {
            "budgets": (2e10, 5e10),
            "sizes": 4,
            "prior_flops": 2e10,
            "prior_size": 17e3,
            "prior_exponent": 0.0,
            "below": 1.6,
            "above": 2.6,
        }
    )
    config.eval_points = 3
    return config
