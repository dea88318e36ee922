"""python -m tools.published --data=DIR [--download]

Puts this project's numbers beside the published ones of eleven studies of scaling laws: coefficients, standard errors,
intervals, exponents, objectives, biases and allocations, computed from the studies' own data. DIR holds their tables as
CSV files (default: the environment variable SCALING_PUBLISHED_DATA); studies whose tables are not there are named and
left out. --download first fetches into DIR the missing tables that are plain files in public repositories.

The verdict on each number is one of

    reproduced  ours is the published one, to its last digit or within the tolerance shown
    better      the published one is a minimum, and ours is lower
    differs     the data are known to give another number; what is known of why is printed below the table
    FAILED      ours is neither

Ends with 3 where something failed, and with 2 where there is no folder of data. About 5 seconds of CPU.
"""

import os
import pathlib
import time
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from absl import flags

from scaling import command
from scaling.analysis.golden import STUDIES
from scaling.analysis.published import Row, absent, check
from scaling.analysis.sources import SOURCES, fetch
from scaling.errors import InputError

VARIABLE = "SCALING_PUBLISHED_DATA"
HEADER = ("study", "quantity", "published", "ours", "+-", "verdict")
SIDES = "<<>>><"

FLAGS = flags.FLAGS
flags.DEFINE_bool("download", False, "fetch the missing tables that are plain files in public repositories")
flags.DEFINE_string("data", None, f"folder of the studies' tables, NAME.csv each; default: {VARIABLE}")


def main(argv: Sequence[str]) -> int:
    """Checks every study whose tables there are, prints the table, and says whether something failed."""
    del argv
    begun = time.process_time()
    folder = _folder()
    if FLAGS.download:
        for source in SOURCES:
            if not (folder / f"{source.name}.csv").exists():
                print(f"downloaded {fetch(source, folder)}", flush=True)
    rows = [row for study in STUDIES if not absent(study, folder) for row in check(study, folder)]
    print("\n".join(_table(rows)))
    for study in STUDIES:
        if missing := absent(study, folder):
            print(f"not checked: {study.name}, no {', '.join(missing)} in {folder}")
    count = Counter(row.verdict for row in rows)
    found = ", ".join(f"{count[name]} {name}" for name in ("reproduced", "better", "differs", "FAILED"))
    studies = len({row.study for row in rows})
    print(f"{len(rows)} quantities of {studies} studies: {found} ({time.process_time() - begun:.0f} s of CPU)")
    return command.FAILED if count["FAILED"] else command.DONE


def _folder() -> pathlib.Path:
    """The folder of data. Raises InputError where none is named, or it is not there and nothing is to be fetched."""
    named = FLAGS.data or os.environ.get(VARIABLE)
    if not named:
        raise InputError("no folder of published data", do=f"give --data=DIR, or set {VARIABLE}")
    folder = pathlib.Path(named)
    if not (folder.is_dir() or FLAGS.download):
        do = f"give --data=DIR or set {VARIABLE}; --download fetches what is public"
        raise InputError("no such folder of published data", str(folder), do)
    return folder


def _table(rows: Sequence[Row]) -> list[str]:
    """The lines of the table, and under it the reason of each verdict that is not the published number."""
    cells = [HEADER, *((row.study, row.quantity.name, *_numbers(row), row.verdict) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        padded = (f"{text:{side}{width}}" for text, side, width in zip(line, SIDES, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict == "differs":
            reasons.setdefault(f"{row.study}: {row.quantity.why}", []).append(row.quantity.name)
    return [*lines, "", *(f"differs: {', '.join(names)} of {why}" for why, names in reasons.items())]


def _numbers(row: Row) -> tuple[str, str, str]:
    """The published number as printed, ours to one digit more, and the tolerance."""
    published = row.quantity.published
    decimals = max(0, -Decimal(published).as_tuple().exponent)
    return published, f"{row.ours:.{decimals + 1}f}", f"{row.quantity.margin:.0e}"


if __name__ == "__main__":
    command.launch(main)
