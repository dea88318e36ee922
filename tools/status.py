"""How far a sweep is: done, running, failed and why, missing; how fast, which cells are slow, and the time left.

python -m tools.status --workdir=runs/demo
python -m tools.status --workdir=runs/demo --watch
python -m tools.status --workdir=runs/demo --profile=d48x2-1.5M-0123456789ab:5
"""

import contextlib
import pathlib

from absl import flags

from scaling import command
from scaling.sweeps.forks import groups, plan_words
from scaling.sweeps.results import totals
from scaling.sweeps.status import ask_profile, notes, status_rows, status_text, time_left
from scaling.sweeps.watch import watch
from scaling.sweeps.workdir import read_sweep


class _Seconds(flags.FloatParser):
    """A flag that needs no value: --watch is --watch=5, and --nowatch takes it back."""

    def parse(self, argument: str | float) -> float | None:
        if argument == "false":
            return None
        return super().parse("5" if argument == "true" else argument)


WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
WATCH = flags.DEFINE_flag(
    flags.Flag(
        _Seconds(lower_bound=0.1),
        None,
        "watch",
        None,
        "Show it again every 5 seconds, or --watch=SECONDS, until nothing is left to run; Ctrl-C ends it.",
        boolean=True,
    )
)
ALL = flags.DEFINE_bool("all", False, "With --watch: list all cells, not only those that run or failed.")
PROFILE = flags.DEFINE_string(
    "profile", None, "RUN or RUN:STEPS: ask a running cell for a profile of its next steps, 5 unless said otherwise."
)


def main(argv: list[str]) -> None:
    del argv
    workdir = pathlib.Path(WORKDIR.value)
    sweep = read_sweep(workdir)
    if PROFILE.value is not None:
        print(f"asked for; the trace will be in {ask_profile(workdir, sweep.cells, PROFILE.value)}")
    elif WATCH.value is not None:
        with contextlib.suppress(KeyboardInterrupt):
            watch(workdir, WATCH.value, ALL.value)
    else:
        table = status_rows(workdir, sweep)
        print(status_text(table))
        print(*notes(table), f"{totals(table)}; {time_left(table)}", sep="\n")
        if found := groups(sweep.config, sweep.cells):
            print(plan_words(found))


if __name__ == "__main__":
    command.launch(main)
