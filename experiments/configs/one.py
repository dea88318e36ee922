"""One run: 45k parameters on the standard library's text, to 1e11 FLOPs.

python -m experiments.train --config=experiments/configs/one.py --workdir=runs/one

Expected: about 20 s on one core, and a held-out loss of about 1.9 nats per token.
"""

from ml_collections import ConfigDict

from experiments.configs.laptop import DATA, MODEL
from scaling.sweeps.config import OneConfig, config_dict


def get_config() -> ConfigDict:
    return config_dict(OneConfig(data=DATA, recipe="small", size=45e3, flops=1e11, model=MODEL))
