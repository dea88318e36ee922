"""python -m tools.analyze --runs=a.csv[,b.csv] [--curves=c.csv] --out=DIR [--target_flops=1e21,...]
[--loss_unit=nats|bits]

Fits scaling laws to a table of runs, anyone's: the three approaches of Hoffmann et al. 2022 with bootstrap intervals,
the compute-optimal run at each target, figures and an offline report. The table needs columns N (parameters), D
(tokens) and loss; C (FLOPs) defaults to 6ND. Where it is the results.csv of a sweep, the runs to do next are complete
configurations of that sweep, for experiments.train --run.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from scaling import command
from scaling.analysis.analyze import RESAMPLES, Analysis, analyze
from scaling.analysis.curves import read_curves
from scaling.analysis.decisions import next_runs
from scaling.analysis.report import summary, write_report
from scaling.analysis.table import read_table
from scaling.data.token_store import open_store
from scaling.errors import InputError
from scaling.study import configured
from scaling.sweeps.workdir import read_sweep

FLAGS = flags.FLAGS
flags.DEFINE_list("runs", None, "CSV files of runs; their rows are joined", required=True)
flags.DEFINE_string("curves", "", "CSV file of losses during training, for Approach 1")
flags.DEFINE_string("out", None, "folder for report.html, report.json, next_run.json and the figures", required=True)
flags.DEFINE_list("target_flops", [], "budgets to recommend a run for; none: twice the largest C of the table")
flags.DEFINE_enum("loss_unit", "nats", ["nats", "bits"], "unit of the column loss, per token; bits are converted")
flags.DEFINE_bool("drop_outliers", False, "leave out the rows that the column outlier marks")
flags.DEFINE_integer("resamples", RESAMPLES, "bootstrap resamples", lower_bound=100)
flags.DEFINE_integer("seed", 0, "of the bootstrap", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Reads, analyses, writes, and prints what matters."""
    del argv
    targets = [_flops(text) for text in FLAGS.target_flops]
    table = read_table(FLAGS.runs, loss_unit=FLAGS.loss_unit, drop_outliers=FLAGS.drop_outliers)
    curves = read_curves(FLAGS.curves, loss_unit=FLAGS.loss_unit) if FLAGS.curves else None
    analysis = analyze(table, curves, targets, FLAGS.resamples, FLAGS.seed)
    write_report(analysis, FLAGS.out, next_runs=_next_runs(analysis, pathlib.Path(FLAGS.runs[0]).parent))
    print(summary(analysis))
    print(f"report: {FLAGS.out}/report.html")


def _next_runs(analysis: Analysis, workdir: pathlib.Path) -> list[dict[str, Any]]:
    if not (workdir / "sweep.json").exists():
        return next_runs(analysis)
    sweep = read_sweep(workdir)
    return configured(sweep.config, open_store(sweep.store_path), next_runs(analysis))


def _flops(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--target_flops={text!r} is not a number", do="give FLOPs such as 1e21") from None


if __name__ == "__main__":
    command.launch(main)
