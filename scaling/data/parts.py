"""What a source of text is: parts that processes can read side by side, whose documents follow one another."""

import dataclasses
from collections.abc import Callable, Iterator

Documents = Iterator[tuple[str, bytes | None]]


@dataclasses.dataclass(frozen=True)
class Part:
    """What one process reads at a time. It can be pickled, if `read` can: a functools.partial of a module's function.

    name: of the part, for messages.
    read: yields pairs of a document's name (for messages) and its bytes, always the same in the same order. The bytes
      are None for a document that a filter left out: it is counted, and not read further.
    """

    name: str
    read: Callable[[], Documents]


@dataclasses.dataclass(frozen=True)
class Source:
    """A source that has been found.

    parts: in a fixed order. How text is divided depends on the source alone, never on the machine that reads it.
    fingerprint: a cheap identity of what it would yield now (names, sizes, times; no text is read).
    """

    parts: tuple[Part, ...]
    fingerprint: str

    @property
    def documents(self) -> Documents:
        """All documents, part by part."""
        for part in self.parts:
            yield from part.read()
