"""A Hugging Face checkpoint as parameters that a run can start from.

python -m tools.import_hf --checkpoint=gpt2 --out=params/gpt2-124M

The checkpoint is a directory with config.json and model.safetensors, in one file or several, of a GPT-2 or a Llama.
A run starts from the parameters where its `start` is the content id that is printed.
"""

import pathlib

from absl import flags

from scaling import command
from scaling.specs import located

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Directory of the checkpoint.", required=True)
OUT = flags.DEFINE_string("out", None, "Directory of the parameters; it must not exist.", required=True)


def main(argv: list[str]) -> None:
    del argv
    from scaling.models.counts import parameters
    from scaling.models.huggingface import from_hf, read_checkpoint
    from scaling.models.parameter_files import refuse_existing, write_params

    refuse_existing(OUT.value)
    config, tensors = read_checkpoint(CHECKPOINT.value)
    with located(CHECKPOINT.value):
        shape, params = from_hf(config, tensors)
    source = f"huggingface {config['model_type']} {pathlib.Path(CHECKPOINT.value).resolve().name}"
    content_id = write_params(OUT.value, shape, params, source)
    print(f"{OUT.value}: {config['model_type']}, {parameters(shape).N:,} parameters")
    print(f"content id: {content_id}")


if __name__ == "__main__":
    command.launch(main)
