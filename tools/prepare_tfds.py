"""Makes a TFDS data set, without TensorFlow: of local text, or of one that is prepared as tfrecord.

python -m tools.prepare_tfds --source='files:text/**/*.txt' --name=my_text --out=TFDS_DATA_DIR
python -m tools.prepare_tfds --convert=TFDS_DATA_DIR/c4/en/3.1.0 --out=OTHER_DATA_DIR

Afterwards the source tfds:my_text (or tfds:c4/en:3.1.0) reads it, where TFDS_DATA_DIR is set to --out.
"""

from absl import flags

from scaling import command
from scaling.errors import InputError

SOURCE = flags.DEFINE_string("source", None, "Text to prepare, in split train: files:GLOB, or any other source.")
NAME = flags.DEFINE_string("name", None, "Name of the new data set of --source.")
CONVERT = flags.DEFINE_string("convert", None, "Directory of a data set prepared as tfrecord; becomes array_record.")
OUT = flags.DEFINE_string("out", None, "Data directory for the result, TFDS_DATA_DIR of those who read.", required=True)


def main(argv: list[str]) -> None:
    del argv
    if bool(CONVERT.value) == bool(SOURCE.value and NAME.value):
        raise InputError("give either --source and --name, or --convert")
    from scaling.data import tfds_prepare  # here: tfds takes a second
    from scaling.data.sources import open_source

    if CONVERT.value:
        path = tfds_prepare.convert(CONVERT.value, OUT.value)
        print(f"converted: {path}")
    else:
        builder = tfds_prepare.prepare_text(open_source(SOURCE.value), NAME.value, OUT.value)
        print(f"prepared: {builder.data_path}")
        print(f"documents: {builder.count['written']:,}, left out by filters: {builder.count['filtered']:,}")
    print(f"read it with TFDS_DATA_DIR={OUT.value}")


if __name__ == "__main__":
    command.launch(main)
