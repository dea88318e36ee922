"""How far a sweep is: done, running, failed and why, missing.

python -m tools.status --workdir=runs/demo
"""

import pathlib

from absl import flags

from scaling import command
from scaling.sweeps.results import totals
from scaling.sweeps.status import status_rows, time_left
from scaling.sweeps.workdir import read_sweep

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)


def main(argv: list[str]) -> None:
    del argv
    workdir = pathlib.Path(WORKDIR.value)
    table = status_rows(workdir, read_sweep(workdir))
    shown = table.assign(
        budget=table["budget"].map("{:.3g}".format),
        N=table["N"].map("{:,.0f}".format),
        progress=table["progress"].map("{:.0%}".format),
        loss=table["loss"].map("{:.4f}".format).replace("nan", ""),
    )
    print(shown.drop(columns=["C", "seconds", "reason"]).to_string(index=False))
    for row in table.itertuples():
        if row.reason:
            print(f"{row.status}: {row.run}: {row.reason}")
    print(f"{totals(table)}; {time_left(table)}")


if __name__ == "__main__":
    command.launch(main)
