"""python -m tools.tune --runs=results.csv[,more.csv] --out=DIR [--base=RECIPE]

Fits a rule of the peak learning rate to a tuning sweep, in which each size (and batch) is trained at several rates:
checks that every optimum is bracketed, and writes DIR/rule.json, which --config.recipe=rule:DIR/rule.json follows, with
DIR/tuning.json and DIR/tuning.html beside it. The tables need columns N, D, peak_lr and loss; batch_tokens and status
are understood.
"""

import hashlib
import pathlib
from collections.abc import Sequence

from absl import flags

from scaling import command
from scaling.analysis.table import read_frame
from scaling.errors import InputError
from scaling.files import read_json
from scaling.recipes import RECIPES
from scaling.tuned import write_tuning

FLAGS = flags.FLAGS
flags.DEFINE_list("runs", None, "CSV files of runs, results.csv of tuning sweeps; their rows are joined", required=True)
flags.DEFINE_string("out", None, "folder for rule.json, tuning.json and tuning.html", required=True)
flags.register_validator("out", lambda out: out != "", "name a folder")
flags.DEFINE_string("base", "", "recipe that the runs followed but for the rate; none: as sweep.json beside them says")


def main(argv: Sequence[str]) -> None:
    """Reads, fits, writes, and prints the optima, the rule and the next command."""
    del argv
    frame = read_frame(FLAGS.runs)
    base = FLAGS.base or _swept(pathlib.Path(FLAGS.runs[0]).parent)
    source = hashlib.sha256(b"".join(pathlib.Path(path).read_bytes() for path in FLAGS.runs)).hexdigest()
    print(write_tuning(frame, base, source, pathlib.Path(FLAGS.out), ", ".join(FLAGS.runs)))
    print(f"page: {FLAGS.out}/tuning.html")


def _swept(workdir: pathlib.Path) -> str:
    """The recipe of the sweep whose results are read."""
    if not (workdir / "sweep.json").exists():
        raise InputError("--base is missing", do=f"name the recipe that the runs followed: {', '.join(RECIPES)}")
    return read_json(workdir / "sweep.json")["config"]["recipe"]


if __name__ == "__main__":
    command.launch(main)
