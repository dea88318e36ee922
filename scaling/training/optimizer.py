"""AdamW without its learning rate, which the step applies, and the mask of what decays."""

from typing import Any

import flax.linen as nn
import jax
import optax

from scaling.runs import OptimizerSpec


def decay_mask(boxed_params: Any) -> Any:
    """True for matrices, tables included; False for scales and biases. By logical axes: layers stacked by the scan have
    one more dimension than they mean."""

    def is_matrix(leaf: nn.LogicallyPartitioned) -> bool:
        return len([name for name in leaf.names if name != "layers"]) >= 2

    return jax.tree.map(is_matrix, boxed_params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def make_optimizer(spec: OptimizerSpec, mask: Any) -> optax.GradientTransformation:
    """Clipping, Adam and decoupled weight decay (Loshchilov & Hutter 2019, alg. 2). Updates are to be scaled by -lr."""
    clip = [optax.clip_by_global_norm(spec.clip_norm)] if spec.clip_norm is not None else []
    adam = optax.scale_by_adam(spec.b1, spec.b2, spec.eps)
    return optax.chain(*clip, adam, optax.add_decayed_weights(spec.weight_decay, mask))
