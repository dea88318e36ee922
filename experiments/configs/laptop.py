"""An isoFLOP study on one laptop, on real text: 4 budgets x 6 sizes, and a prediction at twice the largest budget.

python -m experiments.sweep --config=experiments/configs/laptop.py --workdir=runs/demo

Or `make demo`. Expected: about 3 minutes on 2 cores; a U with its minimum inside at every budget, N* from about 25k at
1.3e11 FLOPs to about 100k at 1.2e12.
"""

from ml_collections import ConfigDict

from scaling.sweeps.config import DataConfig, GridConfig, ModelConfig, SweepConfig, config_dict

DATA = DataConfig(source="stdlib", tokenizer="bytes", sequence_length=64, eval_windows=512)
MODEL = ModelConfig(tied_embeddings=True, output_init="zero")
GRID = GridConfig(
    budgets=(1.3e11, 2.7e11, 5.6e11, 1.2e12),
    sizes=6,
    prior_flops=8e11,
    prior_size=81e3,
    prior_exponent=0.6,
    below=2.4,
    above=7.0,
)


def get_config() -> ConfigDict:
    return config_dict(SweepConfig(DATA, "small", GRID, model=MODEL, prediction=2.0))
