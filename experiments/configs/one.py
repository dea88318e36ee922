"""One run: 45k parameters on the standard library's text at 1e11 FLOPs. About 20 s on one core; loss about 1.85.

python -m experiments.train --config=experiments/configs/one.py --workdir=runs/one
"""

from ml_collections import ConfigDict

from experiments.configs import laptop


def get_config() -> ConfigDict:
    sweep = laptop.get_config()
    return ConfigDict({"data": sweep.data, "model": sweep.model, "recipe": sweep.recipe, "size": 45e3, "flops": 1e11})
