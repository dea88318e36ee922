"""The study of Hoffmann et al. 2022 on C4: their 50 sizes, nine isoFLOP budgets, and each size for four durations.

python -m experiments.sweep --config=experiments/configs/chinchilla.py --workdir=runs/chinchilla

Look at it first, which needs neither text nor hardware and takes seconds:

    python -m tools.plan --config=experiments/configs/chinchilla.py --suppose_tokens=1.5e11 --suppose_vocab=32000

With --topology=v5p:4x4x4 it says too where each cell goes on such hardware, and what it takes there.

Expected: 419 cells and 2.8e23 FLOPs, which takes a cluster; this study was planned, not run. A budget has all published
sizes within a factor of four of the prior optimum, 23 to 30 of them. Durations above 1e22 FLOPs are dropped, and
listed. C4 has about 1.5e11 tokens, too few for 25 cells: the plan says which, and how many epochs.
"""

from ml_collections import ConfigDict

from scaling.sweeps.config import DataConfig, DurationsConfig, GridConfig, ModelConfig, SweepConfig, config_dict

DATA = DataConfig(
    source="tfds:c4/en:3.1.0",
    tokenizer="bpe:32000",
    sequence_length=2048,
    eval_windows=1024,
    validation_fraction=0.001,
    max_epochs=2.5,  # 25 of the cells repeat C4, up to 2.3 times; the report names them
)
MODEL = ModelConfig(family="chinchilla", sizes="presets")
# Budgets of their Figure 3. The prior is their Table 3: 1B parameters at 1.21e20 FLOPs, and N* as the root of C.
GRID = GridConfig(
    budgets=(6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21),
    sizes=50,  # all that there are between below and above
    prior_flops=1.21e20,
    prior_size=1e9,
    below=4.0,
    above=4.0,
)
# Durations over a factor of 16, as in their section 3.1; around the 20 tokens a parameter that came out of it.
DURATIONS = DurationsConfig(tokens_per_parameter=(5.0, 12.6, 31.7, 80.0), max_flops=1e22)


def get_config() -> ConfigDict:
    return config_dict(SweepConfig(DATA, "chinchilla", GRID, DURATIONS, model=MODEL, precision="bf16", prediction=2.0))
