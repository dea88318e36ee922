"""What the fields of a variant are, and what each does to a run.

data.*, model.family, model.norm ..., recipe, precision, eval_points: as in the config.
model.n_layers: depth at a fixed size, the width follows.
model.d_ff, n_heads, n_kv_heads, d_head, biases, rotary_base, norm_epsilon: of the shape that the size has.
batch_size: at the same tokens; steps, warm-up and decay follow.
lr_factor: times the recipe's peak rate.
seed: of initialisation and data order.
optimizer.*, schedule.*, z_loss: of the run.
"""

import dataclasses
from typing import Any

from scaling.errors import InputError, nearest
from scaling.recipes import Settings, get_recipe, with_batch
from scaling.runs import ModelShape, OptimizerSpec, ScheduleSpec
from scaling.sweeps.config import DataConfig, ModelConfig, OneConfig, SweepConfig
from scaling.sweeps.vary import Variant


def _fields(cls: type, prefix: str, *without: str) -> set[str]:
    return {prefix + field.name for field in dataclasses.fields(cls) if field.name not in without}


_OF_CONFIG = {
    *_fields(DataConfig, "data.", "max_epochs", "seed"),
    *_fields(ModelConfig, "model."),
    *("recipe", "precision", "eval_points"),
}
_OF_SHAPE = _fields(ModelShape, "model.", "d_model", "n_layers", "vocab_size", "n_positions") - _OF_CONFIG
_OF_SETTINGS = {*_fields(OptimizerSpec, "optimizer."), *_fields(ScheduleSpec, "schedule."), "z_loss"}
WHOLE = {"seed": 0, "batch_size": 1, "model.n_layers": 1}  # and the least that each can be
FIELDS = {*_OF_CONFIG, *_OF_SHAPE, *_OF_SETTINGS, "model.n_layers", "batch_size", "lr_factor", "seed"}


def check_variants(config: SweepConfig) -> None:
    """Raises InputError for a field that no variant can set, naming the nearest that it can, and for values that none
    can have; and for a recipe that there is not."""
    for field, value in (pair for variant in config.variants for pair in variant):
        if field not in FIELDS:
            raise InputError(f"unknown field {field!r}", "config.vary", nearest(field, FIELDS))
        whole = isinstance(value, int) and not isinstance(value, bool)
        if field in WHOLE and not (whole and value >= WHOLE[field]):
            raise InputError(f"{field}={value!r} is not a whole number of at least {WHOLE[field]}", "config.vary")
        if (field == "lr_factor" and not (whole or isinstance(value, float))) or (field == "lr_factor" and value <= 0):
            raise InputError(f"lr_factor={value!r} is not a positive number", "config.vary")
    for variant in config.variants:
        get_recipe(varied_config(config, variant).recipe)


def varied_config(config: SweepConfig | OneConfig, variant: Variant) -> Any:
    """The config with those fields of a variant that a config has."""
    for field, value in variant:
        if field in _OF_CONFIG:
            config = _replaced(config, field, value)
    return config


def varied_shape(shape: ModelShape, variant: Variant) -> ModelShape:
    """The shape with those fields of a variant that only a shape has."""
    changes = {field.removeprefix("model."): value for field, value in variant if field in _OF_SHAPE}
    return dataclasses.replace(shape, **changes)


def varied_settings(settings: Settings, variant: Variant, sequence_length: int) -> Settings:
    """A recipe's settings with the batch, rate, optimizer and schedule of a variant."""
    values = dict(variant)
    if "batch_size" in values:
        settings = with_batch(settings, values["batch_size"], sequence_length)
    for field, value in variant:
        if field in _OF_SETTINGS:
            settings = _replaced(settings, field, value)
    factor = values.get("lr_factor", 1.0)
    return _replaced(settings, "optimizer.peak_lr", settings.optimizer.peak_lr * factor)


def _replaced(spec: Any, field: str, value: Any) -> Any:
    """A spec with a field, given by its dotted name, replaced."""
    first, _, rest = field.partition(".")
    return dataclasses.replace(spec, **{first: _replaced(getattr(spec, first), rest, value) if rest else value})
