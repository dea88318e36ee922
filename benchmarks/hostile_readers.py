"""The files that are read here, each valid, and what reads it: for benchmarks.hostile.

A reader does with a value what is done before anything is trained or fitted: names become paths, shapes are counted.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from scaling.analysis.columns import numbers
from scaling.analysis.curves import read_curves
from scaling.analysis.expressions import parse_exclusion
from scaling.analysis.imports import read_points
from scaling.analysis.table import read_table
from scaling.data.token_store import build_store, open_store, read_tokens, store_tokenizer
from scaling.data.tokenizers import get_tokenizer
from scaling.files import parse_json, read_json
from scaling.models.counts import counts
from scaling.models.huggingface import from_hf, read_checkpoint, to_hf, write_checkpoint
from scaling.models.parameter_files import leaf_shapes, load_arrays, read_header, unflatten, write_params
from scaling.parallel.topology import parse_topology
from scaling.rules import LearningRateRule, read_rule, write_rule
from scaling.runs import (
    Component,
    DataSpec,
    EvalSet,
    ModelShape,
    OptimizerSpec,
    Placement,
    Run,
    ScheduleSpec,
    run_id,
    run_to_dict,
)
from scaling.specs import from_dict, located, to_dict
from scaling.sweeps.cells import Cell, Dropped
from scaling.sweeps.config import DataConfig, GridConfig, ModelConfig, SweepConfig, sweep_config
from scaling.sweeps.vary import over
from scaling.sweeps.workdir import Sweep, read_sweep, run_directory, save_sweep
from scaling.training.care import parse_care
from scaling.training.checkpoint_folders import FIELDS, PAGE, read_page, sealed
from scaling.training.claims import Sightings, read_claim, seems_alive
from scaling.training.failures import failure_from
from scaling.training.planned import read_plan, read_run
from scaling.training.records import read_lines, up_to

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "lay", "by", "the", "log"]
EXPERTS = ModelShape(16, 2, 2, 32, 64, activation="swiglu", n_experts=4, experts_per_token=2)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A file as it should be, and what reads it where it lies. kind: see hostile.spoilt."""

    name: str
    kind: str
    path: pathlib.Path
    read: Callable[[pathlib.Path], Any]
    valid: bytes = b""


def readers(folder: pathlib.Path) -> list[Reader]:
    """All of them, with their files written below a folder. Each is read once as it is, which must not be refused."""
    found = []
    for reader in (
        *_of_runs(folder),
        *_of_sweeps(folder),
        *_of_tables(folder),
        *_of_texts(folder),
        *_of_models(folder),
    ):
        reader.read(reader.path)
        found.append(dataclasses.replace(reader, valid=reader.path.read_bytes()))
    return found


def _json(folder: pathlib.Path, name: str, value: Any, read: Callable[[pathlib.Path], Any]) -> Reader:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))
    return Reader(name, "json", path, read)


def _lines(folder: pathlib.Path, name: str, kind: str, lines: list[str], read: Callable[[pathlib.Path], Any]) -> Reader:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return Reader(name, kind, path, read)


def _run() -> Run:
    data = DataSpec(
        "a" * 16, 64, 8, 1, (Component("a" * 16, 0.5), Component("b" * 16, 0.5)), (EvalSet("code", "c" * 16),)
    )
    return Run(EXPERTS, data, 8, 100, OptimizerSpec(0.01), ScheduleSpec("wsd", 10, 20), seed=3)


def _counted(run: Run) -> str:
    """What becomes of a run before it is trained: its counts, and its name as a path."""
    counts(run.model, run.data.sequence_length, run.tokens)
    return str(run_directory(pathlib.Path("workdir"), run_id(run)))


def _of_runs(folder: pathlib.Path) -> Iterator[Reader]:
    run = _run()
    yield _json(folder, "run.json", run_to_dict(run), lambda path: _counted(read_run(path)))
    yield _json(
        folder, "next_run.json", [{"run": None}, {"run": run_to_dict(run)}], lambda path: _counted(read_run(path))
    )
    placement = to_dict(Placement(fsdp=2, microbatch=4, remat="full"))
    yield _json(folder, "placement.json", placement, lambda path: _placed(path, run))
    claim = {
        **{"owner": "f00d", "attempt": 2, "machine": "here", "process": "17 4", "host": "h", "beat": 3, "time": 1.7e9},
        **{"spent": {"wall_seconds": 2.5, "tokens": 100}, "released": False},
    }
    yield _json(folder, "claims/claim.json", claim, _claimed)
    failure = {"kind": "diverged", "reason": "loss 12", "step": 40, "attempt": 2, "host": "h", "retry": "never"}
    yield _json(folder, "failure.json", failure, lambda path: failure_from(read_json(path), str(path)).exit_code)
    record = {"step": 1, "tokens": 512, "loss": 4.1, "eval": {"validation": {"loss": 4.0}}}
    yield from _page(folder / "checkpoints")
    lines = [json.dumps({**record, "step": step}) for step in range(1, 6)]
    yield _lines(folder, "metrics.jsonl", "jsonl", lines, lambda path: (read_lines(path), up_to(path, 3)))


def _placed(path: pathlib.Path, run: Run) -> None:
    placement = from_dict(Placement, read_json(path), str(path))
    try:
        placement.check(run)
    except Exception as error:
        raise type(error)(f"{path}: {error}") from None


def _page(directory: pathlib.Path) -> Iterator[Reader]:
    """What a checkpoint says of itself. A page that is damaged is no refusal: the checkpoint before it is taken."""
    page = {name: kind() for name, kind in FIELDS.items()} | {"step": 5, "attempt": 1}
    path = directory / "5-1" / PAGE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(sealed(page)))
    yield Reader("page of a checkpoint", "json", path, lambda path: read_page(directory / "5-1"))


def _claimed(path: pathlib.Path) -> Any:
    claim = read_claim(path.parent)
    return seems_alive(claim, 60.0), Sightings(60.0).is_free(path.parent), claim.attempt + 1, claim.spent


def _of_sweeps(folder: pathlib.Path) -> Iterator[Reader]:
    run = _run()
    cell = {
        **{"run": run_id(run), "run_spec": run_to_dict(run), "placement": {"fsdp": 2}, "placed": "fsdp 2"},
        **{"memory_gib_est": 0.5, "proof": {"peak_gib": 0.4}},
    }
    plan = {"topology": "v5e:2x2", "cells": [cell, {"run": "d1", "placement": None}]}
    yield _json(folder, "plan.json", plan, lambda path: [_counted(each.run) for each in read_plan(path).values()])
    rule = LearningRateRule(
        "small", -3.0, -0.5, 0.3, (1e4, 1e6), (512.0, 4096.0), (1e6, 1e8), 4, 9, 0.1, None, None, 0.01, "f"
    )
    write_rule(rule, folder / "rule.json")
    yield Reader("rule.json", "json", folder / "rule.json", lambda path: read_rule(path).peak_lr(1e5, 1024))
    data = DataConfig("files:*.txt", "bytes", 64, 8, mixture=("0.5 stdlib",), validation=("code=stdlib",))
    grid = GridConfig((1e10, 1e11), 4, 1e10, 1e5)
    vary = (*over("lr_factor", (0.5, 1.0)), *over("model.activation", ("gelu",)))
    config = SweepConfig(data, "small", grid, points=((1e5, 1e6),), vary=vary, model=ModelConfig(tied_embeddings=True))
    dropped = (Dropped(1e10, 3.5e5, "too few steps"),)
    (folder / "sweep").mkdir()
    save_sweep(
        folder / "sweep", Sweep(config, {"a" * 16: "stores/a"}, (Cell(run, 1e10),), dropped, {"rule:r": to_dict(rule)})
    )
    yield Reader("sweep.json", "json", folder / "sweep" / "sweep.json", _swept)
    values = dataclasses.asdict(config)
    yield _json(
        folder, "config (flags)", values, lambda path: sweep_config(parse_json(path.read_bytes(), str(path)), str(path))
    )
    flags = [
        "care step_seconds=60,keep_every=10",
        "topology 4xv5p:2x2x2",
        "exclude C < 1e18 and not (N in [1, 2]) because short",
    ]
    yield _lines(folder, "flags", "csv", flags, _flags)


def _swept(path: pathlib.Path) -> list[str]:
    sweep = read_sweep(path.parent)
    return [str(run_directory(path.parent, cell.id)) + str(cell.key) for cell in sweep.cells] + [str(sweep.dropped)]


def _flags(path: pathlib.Path) -> None:
    """Texts of flags, one a line. No file is to be named: their refusals name the flag."""
    parsers = {"care": parse_care, "topology": parse_topology, "exclude": parse_exclusion}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, said = line.partition(" ")
        try:
            parsers.get(name, parse_topology)(said)
        except Exception as error:
            raise type(error)(f"{path}: {str(error)[:500]}") from None


def _of_tables(folder: pathlib.Path) -> Iterator[Reader]:
    rows = [f"r{k},{1e6 * 2**k},{1e8 / 2**k},{6e14},{3 - 0.1 * k},{k % 2},done,grid" for k in range(6)]
    head = "run,N,D,C,loss,seed,status,role"
    yield _lines(folder, "results.csv", "csv", [head, *rows], read_table)
    points = [f"r{k % 2},{k},1e6,{k * 1e6 + 1},{6e12 * (k + 1)},{4 - 0.1 * k},validation" for k in range(6)]
    yield _lines(folder, "curves.csv", "csv", ["run,step,N,D,C,loss,split", *points], read_curves)
    chart = ['"Step","r1 - loss","r1 - loss__MIN","r1 - loss__MAX"', "1,3.0,3.0,3.0", "2,2.5,2.5,2.5"]
    yield _lines(folder, "chart.csv", "csv", chart, lambda path: numbers(read_points(path, {}, ["r1"]), "loss"))


def _of_texts(folder: pathlib.Path) -> Iterator[Reader]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    (folder / "text").mkdir()
    for k in range(40):
        (folder / "text" / f"{k:02}.txt").write_text(f"{k} " + " ".join(WORDS[(k * j) % len(WORDS)] for j in range(60)))
    source = f"files:{folder}/text/*.txt"
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["</s>"], show_progress=False)
    library.train_from_iterator([" ".join(WORDS) * 9], trainer)
    library.save(str(folder / "tokenizer.json"))
    yield Reader("tokenizer.json", "json", folder / "tokenizer.json", lambda path: _encoded(f"json:{path}"))
    _train_sentencepiece(folder / "tokenizer.model")
    yield Reader("tokenizer.model", "bytes", folder / "tokenizer.model", lambda path: _encoded(f"sentencepiece:{path}"))
    build_store(source, f"json:{folder / 'tokenizer.json'}", 0.3, folder / "store", processes=1)
    yield Reader("store.json", "json", folder / "store" / "store.json", _opened)
    yield Reader("tokenizer of a store", "bytes", folder / "store" / "tokenizer.json", _opened)
    yield Reader("tokens of a store", "bytes", folder / "store" / "train-00000.tokens", _opened)


def _train_sentencepiece(path: pathlib.Path) -> None:
    import sentencepiece

    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(WORDS)] * 20),
            model_writer=file,
            vocab_size=40,
            minloglevel=2,
            hard_vocab_limit=False,
        )


def _encoded(spec: str) -> Any:
    tokenizer = get_tokenizer(spec)
    assert len(tokenizer.name) < 200
    return tokenizer.vocab_size, tokenizer.end_token


def _opened(path: pathlib.Path) -> Any:
    store = open_store(path.parent, verify=True)
    return store_tokenizer(store).name, read_tokens(store, "train", 0, 8), store.splits["train"].bytes_per_token


def _of_models(folder: pathlib.Path) -> Iterator[Reader]:
    shape = ModelShape(8, 2, 2, 16, 32, activation="swiglu")
    rng = np.random.default_rng(0)
    params = unflatten({name: rng.normal(size=size).astype(np.float32) for name, size in leaf_shapes(shape).items()})
    write_params(folder / "params", shape, params, "made up")
    yield Reader("params.json", "json", folder / "params" / "params.json", lambda path: read_header(path.parent))
    yield Reader("params.safetensors", "bytes", folder / "params" / "params.safetensors", load_arrays)
    (folder / "hf").mkdir()
    config, tensors = to_hf(shape, params)
    write_checkpoint(folder / "hf", config, tensors)
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    yield Reader("config.json", "json", folder / "hf" / "config.json", _imported)
    yield _json(folder / "hf", "model.safetensors.index.json", index, _imported)


def _imported(path: pathlib.Path) -> Any:
    with located(str(path.parent)):  # as tools.import_hf does
        return from_hf(*read_checkpoint(path.parent))[0]
