"""A config's data, found: the token stores that its runs read, built where they are not there yet."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

from scaling.command import default_stores
from scaling.data import store_check
from scaling.data.batches import Stores
from scaling.data.sources import open_source
from scaling.data.storage import as_root, is_remote
from scaling.data.token_store import Split, TokenStore, open_store, prepare_store
from scaling.data.tokenizers import get_tokenizer, resolve_tokenizer
from scaling.errors import InputError
from scaling.files import Path, read_json
from scaling.runs import Component, DataSpec, EvalSet
from scaling.sweeps.config import DataConfig, OneConfig, SweepConfig
from scaling.sweeps.variants import varied_config

VERIFIED = "stores.json"  # in a sweep's directory: which stores were compared with their checksums


@dataclasses.dataclass(frozen=True)
class Text:
    """Token stores and what each is for: `main` gives the loss, a mixture is trained on, `validation` is looked at."""

    main: TokenStore
    mixture: tuple[tuple[float, TokenStore], ...] = ()
    validation: tuple[tuple[str, TokenStore], ...] = ()

    @property
    def stores(self) -> Stores:
        """All stores by content id."""
        found = [self.main, *(store for _, store in self.mixture), *(store for _, store in self.validation)]
        return {store.content_id: store for store in found}

    def spec(self, data: DataConfig, seed: int = 0) -> DataSpec:
        """What a run under a config says of its data."""
        return DataSpec(
            self.main.content_id,
            data.sequence_length,
            data.eval_windows,
            seed=data.seed + seed,
            mixture=tuple(Component(store.content_id, weight) for weight, store in self.mixture),
            validation=tuple(EvalSet(name, store.content_id) for name, store in self.validation),
        )


Texts = Mapping[DataConfig, Text]


STORE = "store:"


def prepare_text(data: DataConfig, stores_dir: Path) -> Text:
    """The stores of a config's data: those named `store:PATH` as they are, others built if they are not there yet.

    A text that is only evaluated on is held out whole; of one that is trained on, its held-out documents are.
    Raises as `prepare_store`, and InputError for a store of another tokenizer than the config's.
    """
    main = open_store(data.source.removeprefix(STORE)) if data.source.startswith(STORE) else None
    # One tokenizer for all: that which is trained here is trained on the main text.
    tokenizer = (
        data.tokenizer if main else resolve_tokenizer(data.tokenizer, open_source(data.source), _own(stores_dir))
    )
    trained = {_base(source) for source in (data.source, *(source for _, source in data.components()))}

    def prepared(source: str) -> TokenStore:
        if source.startswith(STORE):
            store = open_store(source.removeprefix(STORE))
            expected = main.tokenizer if main else get_tokenizer(tokenizer).name
            if store.tokenizer != expected:
                raise InputError(f"its tokenizer is {store.tokenizer}, not {expected}", str(store.path))
            return store
        fraction = data.validation_fraction if _base(source) in trained else 1.0
        return prepare_store(source, tokenizer, fraction, stores_dir)

    if main is not None and not _says(data.tokenizer, main.tokenizer):
        do = f"config.data.tokenizer is {data.tokenizer!r}"
        raise InputError(f"the tokenizer does not match its store, of {main.tokenizer}", str(main.path), do)
    return Text(
        main or prepared(data.source),
        tuple((weight, prepared(source)) for weight, source in data.components() if weight),
        tuple((name, prepared(source)) for name, source in data.eval_sources()),
    )


def _own(stores_dir: Path) -> pathlib.Path:
    """Where tokenizers that are trained here are kept: on a local disk, also where the stores are not."""
    local = default_stores() if is_remote(as_root(stores_dir)) else stores_dir
    return pathlib.Path(local) / "tokenizers"


def _says(spec: str, name: str) -> bool:
    """Whether a config's tokenizer is the one of a name; of one that a source trained, only the size can be told."""
    if spec.startswith("bpe:"):
        return name.startswith(f"bpe-{spec.removeprefix('bpe:')}-")
    return get_tokenizer(spec).name == name


def _base(source: str) -> str:
    return source.partition("|")[0].strip()


def text_of(spec: DataSpec, stores: Stores) -> Text:
    """The stores of a run's data, each for what the run uses it."""
    return Text(
        stores[spec.store],
        tuple((part.weight, stores[part.store]) for part in spec.mixture),
        tuple((part.name, stores[part.store]) for part in spec.validation),
    )


def find_stores(content_ids: Sequence[str], stores_dir: Path) -> Stores:
    """The stores of content ids, among those under a directory. Raises InputError if one is not there."""
    found = {}
    for path in sorted(pathlib.Path(stores_dir).glob("*/store.json")):
        values = read_json(path)
        content_id = values.get("content_id") if isinstance(values, dict) else None
        if content_id in content_ids and content_id not in found:
            found[content_id] = open_store(path.parent)
    missing = [content_id for content_id in content_ids if content_id not in found]
    if missing:
        raise InputError(
            f"no token store of content id {', '.join(missing)}",
            str(stores_dir),
            "give the --stores of the sweep that the run is from, or build it there with tools.tokenize",
        )
    return found


def verify_stores(stores: Stores) -> list[str]:
    """Checks every checksum, once when a sweep begins: a damaged text would spoil all of it.

    Returns what scaling.data.store_check remembers of it. Raises InputError as `open_store` does.
    """
    return [store_check.verify(store) for store in stores.values()]


def remember_verified(workdir: pathlib.Path, verified: Sequence[str]) -> None:
    """Tells the cells of a sweep of stores that were just verified, so that they need not do it again."""
    store_check.remember(verified, workdir / VERIFIED)


def prepare_texts(config: SweepConfig, stores_dir: Path) -> Texts:
    """The stores of every data set of a sweep: of its config, and of its variants where they change it."""
    return {data: prepare_text(data, stores_dir) for data in data_configs(config)}


def data_configs(config: SweepConfig | OneConfig) -> list[DataConfig]:
    """The different data of a sweep's variants, in their order."""
    if isinstance(config, OneConfig):
        return [config.data]
    return list(dict.fromkeys(varied_config(config, variant).data for variant in config.variants))


def planned_text(data: DataConfig, number: int, tokens: float, vocab_size: int) -> Text:
    """A stand-in to plan with, of a size that is only supposed: it holds no text and no run can be trained on it.

    number: tells the texts of a sweep apart. Raises InputError for a size that no text has, and for a mixture.
    """
    if data.mixture or data.validation:
        raise InputError("one size is supposed, and the config has several texts", do="plan with the texts themselves")
    if not (math.isfinite(tokens) and tokens >= 2 and vocab_size >= 1):
        raise InputError(f"a text of {tokens:g} tokens and a vocabulary of {vocab_size}", do="give sizes over 0")
    split = Split(int(tokens), documents=1, bytes=int(tokens))
    splits = {"train": split, "validation": split}
    name = f"{data.source} (supposed)"
    return Text(TokenStore(pathlib.Path(name), f"{number:016x}", name, "supposed", vocab_size, 0, {}, splits))
