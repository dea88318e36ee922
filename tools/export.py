"""The model of a run, for use elsewhere: a Hugging Face checkpoint, or parameters that another run can start from.

python -m tools.export --run=runs/demo/runs/ID --out=exported [--format=params] [--store=stores/mine]

It is that of the last checkpoint, and the step is printed. transformers reads GPT-2's and Llama's shapes; a shape that
neither of them has is refused. With the store of the run, its tokenizer is written beside the model.
"""

import pathlib

from absl import flags

from scaling import command
from scaling.data.store_build import tokenizer_file
from scaling.data.token_store import open_store, store_tokenizer
from scaling.data.tokenizers import Tokenizer
from scaling.errors import InputError
from scaling.files import read_json, write_json
from scaling.runs import Run, run_from_dict, run_id

RUN = flags.DEFINE_string("run", None, "Directory of the run, with run.json and checkpoints.", required=True)
OUT = flags.DEFINE_string("out", None, "Directory of the model; it must not exist.", required=True)
FORMAT = flags.DEFINE_enum("format", "huggingface", ["huggingface", "params"], "What is written.")
STORE = flags.DEFINE_string("store", None, "The run's token store, for its tokenizer and its end token.")


def main(argv: list[str]) -> None:
    del argv
    directory = pathlib.Path(RUN.value)
    run = run_from_dict(read_json(directory / "run.json"), str(directory / "run.json"))
    tokenizer = None if STORE.value is None else _tokenizer(run, STORE.value)
    import jax

    from scaling.models.huggingface import layout_of, to_hf, write_checkpoint
    from scaling.models.parameter_files import new_directory, refuse_existing, write_params
    from scaling.training.last_params import last_params

    jax.config.update("jax_platforms", "cpu")  # the host may hold what one accelerator of a mesh does not
    refuse_existing(OUT.value)
    if FORMAT.value == "huggingface":
        layout_of(run.model)  # refuses the shape before anything is read
    step, params = last_params(directory, run)
    if FORMAT.value == "params":
        print(f"content id: {write_params(OUT.value, run.model, params, f'{run_id(run)} step {step}')}")
    else:
        config, tensors = to_hf(run.model, params)
        if config["model_type"] == "llama":
            config["max_position_embeddings"] = run.data.sequence_length
        with new_directory(OUT.value) as out:
            if tokenizer is not None:
                config["eos_token_id"] = tokenizer.end_token
                _write_tokenizer(out, tokenizer)
            write_checkpoint(out, config, tensors)
    print(f"{OUT.value}: {run_id(run)} after {step} of {run.steps} steps, as {FORMAT.value}")


def _tokenizer(run: Run, path: str) -> Tokenizer:
    store = open_store(path)
    if store.content_id not in run.stores:
        raise InputError(f"is not a store of {run_id(run)}, which reads {', '.join(run.stores)}", path)
    return store_tokenizer(store)


def _write_tokenizer(directory: pathlib.Path, tokenizer: Tokenizer) -> None:
    """The tokenizer's own file, and what tells transformers' AutoTokenizer how to read it."""
    name = tokenizer_file(tokenizer.name)
    if name is not None:
        (directory / name).write_bytes(tokenizer.file)
    if name == "tokenizer.json":
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


if __name__ == "__main__":
    command.launch(main)
