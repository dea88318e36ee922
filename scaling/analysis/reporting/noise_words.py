"""The sentences of a report on the noise floor, and on whether the law misses by more."""

from typing import Any

from scaling.analysis.analyze import Analysis
from scaling.analysis.verdicts import SIGNIFICANT


def noise(analysis: Analysis) -> list[str]:
    """What single runs scatter by, and whether the law misses by more."""
    found = analysis.noise
    if isinstance(found, str):
        return [
            f"Not measured: {found}. The residuals about the law hold the noise of single runs and the misfit of the "
            "law together, and nothing here tells one from the other."
        ]
    low, high = found.sd_log_loss["ci"]
    said = [
        f"{found.replicates} runs repeat {found.settings} settings with other seeds ({found.dof} degrees of freedom). "
        f"About the mean of its setting, a run's loss has a standard deviation of {found.sd_log_loss['value']:.2%} "
        f"[{low:.2%}, {high:.2%}], or {found.sd_loss['value']:.4f} {found.unit}, pooled over settings: the noise "
        f"floor. The difference of two single runs has {2**0.5:.2f} times that."
    ]
    if found.residual_rms is not None:
        ratio = found.residual_rms / found.sd_log_loss["value"]
        said.append(
            f"All runs scatter about the law by {found.residual_rms:.2%} (root mean square of the residuals of log "
            f"loss, adjusted for its parameters), {ratio:.2g} times as much."
        )
    said += _misfit(found.misfit)
    if found.differ:
        said.append(
            f"The runs taken as replicates agree in {', '.join(found.agree)}. They differ in {', '.join(found.differ)} "
            "as well: if one of these is a setting, they are no replicates."
        )
    return said


def _misfit(test: dict[str, Any]) -> list[str]:
    if "skipped" in test:
        return [f"Whether the law misses by more than noise was not tested: {test['skipped']}."]
    numbers = "F({}, {}) = {:.3g}, p = {:.2g}".format(*test["dof"], test["F"], test["p"])
    how = "a test of lack of fit by least squares, which supposes normal noise, in proportion to the loss"
    if test["p"] < SIGNIFICANT:
        return [
            f"The law misses by more than this noise: {numbers} ({how}). Beyond the noise, its misfit has a standard "
            f"deviation of about {test['sd_log_loss']:.2%} of the loss."
        ]
    return [
        f"No misfit beyond this noise is detected: {numbers} ({how}). That does not prove that there is none: with "
        f"these numbers of runs, F up to {test['critical_F']:.2f} would pass."
    ]
