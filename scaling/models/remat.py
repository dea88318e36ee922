"""What a layer keeps for its backward pass, and what it computes again (Chen et al. 2016): the names of a Placement.

none     everything but the gathered weights, which would be the whole model on each device
dots     the results of matrix products with weights
named    the output of attention, the dearest to compute again for its size
full     nothing but the layer's input
offload  nothing, and the layer's input waits in the host's memory
"""

from collections.abc import Callable
from typing import Any

import jax

from scaling.models.axes import Layout


def remat_policy(remat: str, layout: Layout | None) -> Callable[..., Any] | None:
    """What jax.checkpoint may save under a Placement's `remat`; None where a layer is not to be checkpointed at all."""
    policies = jax.checkpoint_policies
    if remat == "none":
        return None if layout is None or layout.zero < 3 else _all_but_gathered
    return {
        "dots": policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("expert_product")
        ),
        "named": policies.save_only_these_names("attention"),
        "full": policies.nothing_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["residual"],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[remat]


def _all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """Saves what goes into a change of layout, never what comes out of it: a weight is kept as it is stored, in parts,
    and gathered again for the backward pass. `gathered` itself is one call with a derivative of its own."""
    if primitive.name == "custom_vjp_call":
        return not any(equation.primitive.name == "sharding_constraint" for equation in params["call_jaxpr"].eqns)
    return primitive.name not in ("sharding_constraint", "optimization_barrier")
