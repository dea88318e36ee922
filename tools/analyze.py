"""python -m tools.analyze --runs=a.csv[,b.csv] [--curves=c.csv[,...]] --out=DIR [--target_flops=1e21,...]

Fits scaling laws to a table of runs, anyone's: the three approaches of Hoffmann et al. 2022 with bootstrap intervals,
the compute-optimal run at each target, the noise floor of seed replicates, figures and an offline report. The table
needs columns N (parameters), D (tokens) and loss; C (FLOPs) defaults to 6ND. Where it is the results.csv of a sweep,
the runs to do next are complete configurations of that sweep, for experiments.train --run.

The law of Approach 3 is that of Hoffmann et al. 2022 unless --law names another; a law with repeated tokens needs the
column unique_tokens, one of shapes width and depth, one of routed experts n_experts. Limits of data and serving enter
the recommendation:
    --law=coupled --objective=absolute_log --unique_tokens=25e9 --inference_tokens=1e12

Tables with other names, another of their losses, rows to leave out:
    --columns=N=params,D=tokens,run=name --loss=val/loss --exclude="C < 1e18 because too short to leave the warm-up"

Curves are CSV files with a row a point, charts exported from Weights & Biases, scalars exported from TensorBoard (a CSV
a run), or folders of event files. What they do not say of their runs is taken from the table, by the run's name:
    --curves=chart.csv --curve_columns=loss=val/loss --tokens_per_step=524288
"""

import pathlib
from collections.abc import Sequence
from typing import Any, get_args

import pandas as pd
from absl import flags

from scaling import command
from scaling.analysis.analyze import RESAMPLES, Analysis, analyze
from scaling.analysis.columns import parse_columns
from scaling.analysis.curves import SPLIT, Curves, read_curves
from scaling.analysis.decisions import next_runs
from scaling.analysis.fitting import Kind, Objective
from scaling.analysis.laws import LAWS, law_named
from scaling.analysis.report import summary, write_report
from scaling.analysis.resampling import UNITS
from scaling.analysis.table import UNIT, Table, read_frame, read_table
from scaling.errors import InputError

FLAGS = flags.FLAGS
DELTA = Objective().delta
OF_CURVES = ("curve_columns", "curve_split", "curve_loss_unit", "tokens_per_step")
flags.DEFINE_list("runs", None, "CSV files of runs; their rows are joined", required=True)
flags.DEFINE_list("columns", [], "their names for our columns: N=params,D=tokens,run=name,...")
flags.DEFINE_string("loss", "loss", "the column of losses to fit: loss, or that of another held-out text")
flags.DEFINE_enum("loss_unit", "nats", list(UNIT), "unit of it: nats or bits per token (converted), or bits per byte")
flags.DEFINE_multi_string("exclude", [], '"EXPRESSION because REASON": rows to leave out; may be given again')
flags.DEFINE_bool("drop_outliers", False, "leave out the rows that the column outlier marks")
flags.DEFINE_list("curves", [], "files or folders of losses during training, for Approach 1")
flags.DEFINE_list("curve_columns", [], "the same for the curves; loss= names the metric of a chart, the tag of events")
flags.DEFINE_string("curve_split", SPLIT, "the held-out text of the curves, where they have a column split")
flags.DEFINE_enum("curve_loss_unit", None, list(UNIT), "unit of the curves' losses; as --loss_unit, unless that is bpb")
flags.DEFINE_float("tokens_per_step", None, "of curves in steps; none: D over steps of the table", lower_bound=1)
flags.DEFINE_string("out", None, "folder for report.html, report.json, next_run.json and the figures", required=True)
flags.register_validator("out", lambda out: out != "", "name a folder")
flags.DEFINE_list("target_flops", [], "budgets to recommend a run for; none: twice the largest C of the table")
flags.DEFINE_string("law", "chinchilla", f"of Approach 3: {', '.join(LAWS)}")
flags.DEFINE_enum("objective", "huber_log", list(get_args(Kind)), "of its residuals, of log loss or of loss (raw)")
flags.DEFINE_float("delta", None, f"Huber's zone, in the unit of the residuals; none: {DELTA:g}", lower_bound=1e-12)
flags.DEFINE_enum("unit", "auto", list(UNITS), "what the bootstrap resamples; auto: trunks, else runs, else rows")
flags.DEFINE_float("unique_tokens", None, "also the optimum with this many different tokens", lower_bound=1)
flags.DEFINE_float("inference_tokens", None, "also the optimum for serving this many tokens", lower_bound=1)
flags.DEFINE_bool("thorough", True, "compare laws, find what the answer depends on, and the cells to train next")
flags.DEFINE_integer("resamples", RESAMPLES, "bootstrap resamples", lower_bound=100)
flags.DEFINE_integer("seed", 0, "of the bootstrap", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Reads, analyses, writes, and prints what matters."""
    del argv
    targets = [_flops(text) for text in FLAGS.target_flops]
    law = law_named(FLAGS.law)
    objective = _objective()
    columns = _run_columns()
    table = read_table(
        FLAGS.runs,
        columns=columns,
        loss_unit=FLAGS.loss_unit,
        drop_outliers=FLAGS.drop_outliers,
        exclude=FLAGS.exclude,
        needs=law.needs,
    )
    curves = _curves(table, columns)
    analysis = analyze(
        table,
        curves,
        targets,
        FLAGS.resamples,
        FLAGS.seed,
        law=law,
        objective=objective,
        unit=FLAGS.unit,
        unique_tokens=FLAGS.unique_tokens,
        inference_tokens=FLAGS.inference_tokens,
        thorough=FLAGS.thorough,
    )
    write_report(analysis, FLAGS.out, **_of_sweep(analysis, pathlib.Path(FLAGS.runs[0]).parent))
    print(summary(analysis))
    print(f"report: {FLAGS.out}/report.html")


def _run_columns() -> dict[str, str]:
    columns = parse_columns(FLAGS.columns, "columns")
    if FLAGS.loss == "loss":
        return columns
    if "loss" in columns:
        raise InputError(f"--loss={FLAGS.loss} and --columns=loss={columns['loss']}", do="give one of them")
    return {**columns, "loss": FLAGS.loss}


def _objective() -> Objective:
    if FLAGS.delta is not None and not FLAGS.objective.startswith("huber"):
        raise InputError(f"--delta={FLAGS.delta:g} is of Huber's loss", do=f"--objective={FLAGS.objective} has none")
    return Objective(FLAGS.objective, DELTA if FLAGS.delta is None else FLAGS.delta)


def _curves(table: Table, columns: dict[str, str]) -> Curves | None:
    if not FLAGS.curves:
        alone = [f"--{name}" for name in OF_CURVES if FLAGS[name].present]
        if alone:
            raise InputError(f"{alone[0]} without --curves", do="give the curves that it is of, or leave it out")
        return None
    unit = FLAGS.curve_loss_unit or FLAGS.loss_unit
    if FLAGS.loss_unit == "bpb" and not FLAGS.curve_loss_unit:
        do = "curve_loss_unit=nats if it is that of curves.csv"
        raise InputError("--loss_unit=bpb does not tell the unit of the curves", do=f"give it: --{do}")
    return read_curves(
        FLAGS.curves,
        runs=read_frame(FLAGS.runs, columns),
        columns=parse_columns(FLAGS.curve_columns, "curve_columns"),
        tokens_per_step=FLAGS.tokens_per_step,
        split=FLAGS.curve_split,
        loss_unit=unit,
        left_out=table.excluded_runs,
    )


def _of_sweep(analysis: Analysis, workdir: pathlib.Path) -> dict[str, Any]:
    """What the report can tell besides, where the table is the results.csv of a sweep: of write_report's arguments."""
    if not (workdir / "sweep.json").exists():
        return {}
    # Imported here: a table of other people's runs needs none of what makes and stores runs.
    from scaling.analysis.tuning import rates_report
    from scaling.conclusions import configured
    from scaling.sweeps.cells import Common
    from scaling.sweeps.texts import text_of
    from scaling.sweeps.variants import varied_config
    from scaling.sweeps.workdir import open_stores, read_sweep, rule_of

    sweep = read_sweep(workdir)
    if len(sweep.config.variants) > 1:
        return {}  # which of them to go on with is not this table's to say
    (variant,) = sweep.config.variants
    config = varied_config(sweep.config, variant)
    rates = rates_report(pd.read_csv(workdir / "results.csv"), rule_of(sweep, config.recipe), config.recipe)
    try:
        text = text_of(sweep.grid[0].run.data, open_stores(sweep))
    except InputError as error:  # a table may be read where its text is not
        return {"rates": rates, "notes": [f"The next runs have no configuration here: {error}"]}
    return {"next_runs": configured(Common(config, text, variant), next_runs(analysis)), "rates": rates}


def _flops(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--target_flops={text!r} is not a number", do="give FLOPs such as 1e21") from None


if __name__ == "__main__":
    command.launch(main)
