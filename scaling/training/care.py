"""How a run is looked after while it trains. It changes no result, so it is no part of a run."""

import dataclasses

from scaling.errors import InputError, nearest
from scaling.specs import require, settle


@dataclasses.dataclass(frozen=True)
class Care:
    """Seconds between saves, saves to keep, and how long a part of the work may take before the run is ended.

    keep_every: every n-th checkpoint is kept besides the newest two, 0 for none. stale_seconds: without a sign of life
    from another process, after which its run may be taken over.
    """

    checkpoint_seconds: float = 300.0
    keep_every: int = 0
    compile_seconds: float = 3600.0
    step_seconds: float = 1800.0
    save_seconds: float = 1800.0
    stale_seconds: float = 60.0

    def __post_init__(self) -> None:
        settle(self, "care")
        for field in dataclasses.fields(self):
            value, may_be_0 = getattr(self, field.name), field.name == "keep_every"
            fault = f"care.{field.name}={value} is not {'0 or more' if may_be_0 else 'above 0'}"
            require(value >= 0 if may_be_0 else value > 0, fault)

    def text(self) -> str:
        """As `parse_care` reads it: what differs from the defaults."""
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in changed)


def parse_care(text: str) -> Care:
    """The care that a flag says: NAME=NUMBER,... Raises InputError for an unknown name, and for what is no number."""
    fields = {field.name: field.type for field in dataclasses.fields(Care)}
    values = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        require(name in fields, f"--care: unknown {name!r}", nearest(name, fields))
        try:
            values[name] = fields[name](value)
        except ValueError:
            raise InputError(f"--care={part}", do=f"{name}=NUMBER") from None
    return Care(**values)


HELP = "How runs are looked after, NAME=NUMBER,...; as it is: " + ", ".join(
    f"{field.name}={field.default:g}" for field in dataclasses.fields(Care)
)
