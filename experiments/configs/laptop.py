"""An isoFLOP study on one laptop, on real text: 4 budgets x 7 sizes, and a prediction at twice the largest budget.

python -m experiments.sweep --config=experiments/configs/laptop.py --workdir=runs/demo      (or: make demo)
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {
                "source": "stdlib",
                "tokenizer": "bytes",
                "sequence_length": 64,
                "eval_windows": 512,
                "max_epochs": 2.0,
            },
            "model": {"tied_embeddings": True, "output_init": "zero"},
            "recipe": "small",
            "grid": {
                "budgets": (1.3e11, 2.7e11, 5.6e11, 1.2e12),
                "sizes": 6,
                "prior_flops": 8e11,
                "prior_size": 81e3,
                "prior_exponent": 0.6,
                "below": 2.4,
                "above": 7.0,
            },
            "prediction": 2.0,
        }
    )
