"""Learning rates on one laptop: three sizes, each at six peak rates around the recipe's, and the rule that follows.

python -m experiments.sweep --config=experiments/configs/tune.py --workdir=runs/tune

Expected: 6 minutes on 2 idle cores (estimated from its 1.2e13 FLOPs; 9 measured on busy ones). All three optima are
bracketed, at peak rates of about .012, .009 and .004: a rule of about 4.6 N^-0.6, with the wide interval of 3 sizes.

Then train by it: --config=experiments/configs/laptop.py --config.recipe=rule:runs/tune/report/rule.json
"""

from ml_collections import ConfigDict

from experiments.configs.laptop import DATA, MODEL
from scaling.sweeps.config import DurationsConfig, SweepConfig, config_dict
from scaling.sweeps.vary import over

DURATIONS = DurationsConfig(sizes=(2e4, 5e4, 1.2e5), tokens_per_parameter=(15.0,))
RATES = over("lr_factor", (0.25, 0.5, 1.0, 2.0, 4.0, 8.0))


def get_config() -> ConfigDict:
    return config_dict(SweepConfig(DATA, "small", durations=DURATIONS, vary=RATES, model=MODEL, eval_points=3))
