"""python -m tools.compare --a=a.csv[,more.csv] --b=b.csv[,...] --out=DIR [--names=dclm,comma]

Compares two sweeps (data sets, recipes, architectures): how much more compute B needs for the loss that A reaches,
with an interval, over the losses that both reach within their runs. The tables need columns N, D and loss, C defaults
to 6ND; runs that agree in N, C and seed are resampled together. Both losses must be of one held-out text. With two
tokenizers they must be per byte:
    --columns_a=loss=val/bpb --columns_b=loss=val/bpb --loss_unit=bpb

Writes compare.json, compare.html and the figure, compare.svg and compare.png.
"""

from collections.abc import Sequence

import pandas as pd
from absl import flags

from scaling import command
from scaling.analysis.columns import parse_columns, text
from scaling.analysis.compare import RESAMPLES, compare
from scaling.analysis.compare_plots import comparison_figure, comparison_page
from scaling.analysis.laws import law_named
from scaling.analysis.reporting import style
from scaling.analysis.table import UNIT, Table, read_frame, read_table
from scaling.errors import InputError
from scaling.files import make_directory, write_json, write_text

FLAGS = flags.FLAGS
flags.DEFINE_list("a", None, "CSV files of the runs of sweep A; their rows are joined", required=True)
flags.DEFINE_list("b", None, "CSV files of the runs of sweep B", required=True)
flags.DEFINE_list("names", ["A", "B"], "what to call the two")
flags.DEFINE_list("columns_a", [], "their names for our columns in A: N=params,D=tokens,loss=val/loss,...")
flags.DEFINE_list("columns_b", [], "the same in B")
flags.DEFINE_enum("loss_unit", "nats", list(UNIT), "unit of both losses: nats or bits per token, or bits per byte")
flags.DEFINE_string("law", "chinchilla", "the law of N and D to fit to each: chinchilla, coupled, kaplan or tied")
flags.DEFINE_bool("drop_outliers", False, "leave out the rows that the column outlier marks")
flags.DEFINE_string("out", None, "folder for compare.json, compare.html and the figure", required=True)
flags.register_validator("out", lambda out: out != "", "name a folder")
flags.DEFINE_integer("resamples", RESAMPLES, "bootstrap resamples", lower_bound=100)
flags.DEFINE_integer("seed", 0, "of the bootstrap", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Reads both tables, compares, writes, and prints the sentence."""
    del argv
    names = tuple(FLAGS.names)
    if len(set(names)) != 2 or len(names) != 2:
        raise InputError(f"--names={','.join(names)}: two different names are needed")
    table_a, tokenizers_a = _read(FLAGS.a, FLAGS.columns_a, "columns_a")
    table_b, tokenizers_b = _read(FLAGS.b, FLAGS.columns_b, "columns_b")
    if FLAGS.loss_unit != "bpb" and tokenizers_a and tokenizers_b and tokenizers_a != tokenizers_b:
        raise InputError(
            f"the tokenizers differ ({', '.join(tokenizers_a)}; {', '.join(tokenizers_b)}): their losses per token "
            "cannot be compared",
            do="give losses in bits per byte, with --loss_unit=bpb",
        )
    found = compare(table_a, table_b, names=names, law=law_named(FLAGS.law), resamples=FLAGS.resamples, seed=FLAGS.seed)
    make_directory(FLAGS.out)
    style.save(comparison_figure(found), FLAGS.out, "compare")
    write_json(f"{FLAGS.out}/compare.json", found.to_dict())
    write_text(f"{FLAGS.out}/compare.html", comparison_page(found))
    print(found.sentence())
    print(f"page: {FLAGS.out}/compare.html")


def _read(paths: Sequence[str], columns: Sequence[str], flag: str) -> tuple[Table, list[str]]:
    """The table, and the tokenizers that its column of that name tells."""
    mapped = parse_columns(columns, flag)
    table = read_table(paths, columns=mapped, loss_unit=FLAGS.loss_unit, drop_outliers=FLAGS.drop_outliers)
    frame: pd.DataFrame = read_frame(paths, mapped)
    return table, sorted({*text(frame, "tokenizer")} - {""})


if __name__ == "__main__":
    command.launch(main)
