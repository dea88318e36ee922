"""Where text comes from: a source is a string, of which open_source makes documents in a fixed order.

    stdlib                      the running interpreter's own library
    files:GLOB                  text files, one document each
    tfds:NAME[/CONFIG][:VERSION]    a prepared TFDS data set
    synthetic:vocab=64,...      a Markov chain of known entropy
    SOURCE | FILTER | ...       the documents of a source that pass all filters

The order is fixed, so that a token store built twice from the same source is the same store. A new source is one more
small function in SOURCES.
"""

from collections.abc import Callable

from scaling.data import local_source, synthetic, tfds_source
from scaling.data.filters import filtered
from scaling.data.parts import Part, Source
from scaling.errors import InputError, nearest

__all__ = ["SOURCES", "Part", "Source", "open_source"]

SOURCES: dict[str, Callable[[str], Source]] = {
    "stdlib": local_source.stdlib,
    "files": local_source.files,
    "tfds": tfds_source.tfds,
    "synthetic": synthetic.synthetic,
}


def open_source(source: str) -> Source:
    """Finds a source. No text is read.

    Raises InputError for an unknown source or filter, and for a source that has no documents here.
    """
    name, *filters = [piece.strip() for piece in source.split("|")]
    scheme, _, argument = name.partition(":")
    if scheme not in SOURCES:
        raise InputError(f"unknown source {name!r}", do=nearest(scheme, SOURCES))
    opened = SOURCES[scheme](argument)
    return filtered(opened, filters) if filters else opened
