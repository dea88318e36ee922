"""Where the published data sets come from: those that can be rebuilt from one public file by plain reading.

The other tables of `golden` need more than reading (pickles, notebooks, 208 JSON files, a log in prose) and are not
fetched. A rebuilt table is compared with the one that the numbers of this project were made with, by a hash of its
values to ten digits, and refused if it is another.
"""

import dataclasses
import gzip
import hashlib
import io
import pathlib
import urllib.error
import urllib.request
from collections.abc import Callable

import numpy as np
import pandas as pd

from scaling.errors import InputError
from scaling.files import make_directory, write_text

GITHUB = "https://raw.githubusercontent.com"
TIMEOUT = 60  # seconds
DIGITS = 10


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set. name: of the table, NAME.csv; rebuild(bytes of the file): the table; sha256: of its values."""

    name: str
    url: str
    rebuild: Callable[[bytes], pd.DataFrame]
    sha256: str


def fetch(source: Source, folder: pathlib.Path) -> pathlib.Path:
    """Downloads and rebuilds one table into the folder. Raises InputError where it cannot, or where it is another."""
    try:
        with urllib.request.urlopen(source.url, timeout=TIMEOUT) as answer:
            content = answer.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise InputError(f"cannot be downloaded: {error}", where=source.url) from None
    try:
        frame = source.rebuild(content)
    except (KeyError, ValueError, OSError) as error:  # not that file: no such column, no CSV, no gzip
        raise InputError(f"is not the file that {source.name} is made of: {error}", where=source.url) from None
    if fingerprint(frame) != source.sha256:
        do = "the file has changed since: nothing was written"
        raise InputError(f"gives {len(frame)} rows that are not those of {source.name}", source.url, do)
    make_directory(folder)
    path = folder / f"{source.name}.csv"
    write_text(path, frame.to_csv(index=False))
    return path


def fingerprint(frame: pd.DataFrame) -> str:
    """sha256 of a table's values, columns by name and rows in order, numbers to DIGITS digits."""
    digest = hashlib.sha256()
    for name in sorted(frame.columns):
        column = frame[name]
        numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        cells = [f"{value:.{DIGITS - 1}e}" for value in column.astype(np.float64)] if numeric else map(str, column)
        digest.update("\n".join([name, *cells, ""]).encode())
    return digest.hexdigest()


def _chinchilla(content: bytes) -> pd.DataFrame:
    """Points read off figure 4 of Hoffmann et al.; Besiroglu et al. leave out the five of highest loss."""
    read = pd.read_csv(io.BytesIO(content))
    N, C, loss = (read[name].astype(np.float64) for name in ("N", "C", "loss"))
    out = ~(loss < loss.nlargest(5).min())
    return pd.DataFrame({"N": N, "D": C / (6 * N), "C": C, "loss": loss, "excluded_by_epoch": out})


def _llama(content: bytes) -> pd.DataFrame:
    """Points read off figure 2 of Llama 3, with the flags of Czech et al."""
    read = pd.read_csv(io.BytesIO(content))
    read = read[read["experiment"] == "llama_3__raw_loss"].reset_index(drop=True)
    named = {"N": "params", "D": "tokens", "C": "budget", "loss": "loss", "outlier": "outlier"}
    return pd.DataFrame({ours: read[theirs] for ours, theirs in named.items()})


def _gemstones(content: bytes) -> pd.DataFrame:
    """Checkpoints of runs of many shapes; C = 6ND."""
    read = pd.read_json(io.BytesIO(content), orient="records", lines=True)
    N, D = (read[name].astype(np.float64) for name in ("params_active_precise", "tokens"))
    shape = {"loss": read["final_loss"], "width": read["width"], "depth": read["depth"], "run": read["run_name"]}
    return pd.DataFrame({"N": N, "D": D, "C": 6 * N * D, **shape})


def _routing(content: bytes) -> pd.DataFrame:
    """The last evaluation of every hyper_id; no tokens: all were trained for as many steps."""
    read = pd.read_csv(io.BytesIO(gzip.decompress(content))).sort_values("step").groupby("hyper_id").last()
    named = {"N": "dense_parameter_count", "C": "flops_per_step", "loss": "loss_validation"}
    same = ("num_experts", "k", "router_type", "routing_frequency", "seed")
    frame = pd.DataFrame({ours: read[theirs] for ours, theirs in named.items()} | {name: read[name] for name in same})
    return frame.sort_values(list(frame.columns)).reset_index(drop=True)


def _gemstone_source(name: str, file: str, sha256: str) -> Source:
    commit = "1fb97a26b3a4ee647475ee3b46d67413b1844405"
    url = f"{GITHUB}/mcleish7/gemstone-scaling-laws/{commit}/wandb_dfs/wandb_df_for_fitting_{file}.jsonl"
    return Source(f"gemstones_{name}", url, _gemstones, sha256)


SOURCES = (
    Source(
        "chinchilla_epoch245",  # Epoch's svg_extracted_data.csv, as another repository keeps it
        f"{GITHUB}/hadasah/scaling_laws/1f3708c0a12df0effb0ee906b1da5f9f0ff4f4f1/data/epoch_ai.csv",
        _chinchilla,
        "67f109d803cbc853bfaea1a753d0cdf2821438b0c8ad5450a5e9c447829357e0",
    ),
    Source(
        "isoflop_llama_3_raw_loss",
        f"{GITHUB}/Open-Athena/scaling-law-analysis/3e0656e/data/isoflops/transform/isoflops.csv",
        _llama,
        "40651805e0fa7a82266ae46f6e88fbbe02b92ce63b4b81976908ac19009602c9",
    ),
    Source(
        "moe_routing_final223",
        f"{GITHUB}/google-deepmind/scaling_laws_for_routing/7b1cc8fef4ec707c8a0a82daa7e42b8d60573ed6/data/curves.csv.gz",
        _routing,
        "930e2e6ede69c57754315360e8ff984acc388f78abafe7df8d4c5f3855714cee",
    ),
    _gemstone_source("hot", "hot", "6f7bae15305029137f6edf338e3b505655f612b2b2ddfe4d45c937a4f244626c"),
    _gemstone_source("hot_100bplus", "hot_100b%2B", "9f4434036ffbae55fbe717f0ab478a2f865bb4caab8b2752f713762047dc571e"),
    _gemstone_source(
        "hot_100bplus_512x", "hot_100b%2B_512x", "2f4a617f9f3f410de1746c1d9b4d798b41a2a98e174100deedb3242d1b55c2a5"
    ),
    _gemstone_source(
        "hot_120bplus_only", "hot_120b%2B_only", "993218501b19d0be41f1aeaaa0778e0d63a677188d4b2050faf6be15e95aa0e7"
    ),
    _gemstone_source(
        "lr_ablation_hot", "lr_ablation_hot", "13d9c1ca82610098142f306bf414fdee5efd675ea585b80389faf5cb207dc213"
    ),
)
