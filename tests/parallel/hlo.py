"""Reading the text of a compiled program (`compiled.as_text()`), as XLA's compilers for CPUs, TPUs and GPUs write it.

A text is a list of computations, each a list of instructions in the order in which they run, as the compilers schedule
them: "%name = type kind(operands), attributes". A type is an array, "bf16[8,128]{1,0}", or a tuple of them. An
instruction may call computations, of which those of a fusion are one kernel. Arrays are those of one device.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# What is long enough to hide a collective behind: a matrix product, which TPUs call convolution, or a kernel.
_PRODUCTS = ("dot", "convolution", "ragged-dot")
_KERNELS = ("tpu_custom_call", "__cudnn", "__cublas", "__gpu$")

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Array:
    """dtype: as XLA writes it, bf16 or f32, say."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. results: the arrays that it makes. rest: its operands and attributes, as they stand."""

    name: str
    kind: str
    results: tuple[Array, ...]
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split(")")[0])

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        return re.findall(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)", self.rest)

    @property
    def channel(self) -> str | None:
        """Of a collective: the same in all instructions that are one collective."""
        found = re.search(r"channel_id=(\d+)", self.rest)
        return found and found[1]


Program = dict[str, list[Instruction]]  # by computation, in the order in which they run


def parse(text: str) -> Program:
    """The computations of a program text."""
    program: Program = {}
    for line in text.splitlines():
        if found := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            program[found[1]] = []
        elif found := _INSTRUCTION.match(line):
            name, kind_of_array, kind, rest = found.groups()
            results = tuple(
                Array(t, tuple(int(n) for n in s.split(",") if n)) for t, s in _ARRAY.findall(kind_of_array)
            )
            program[next(reversed(program))].append(Instruction(name, kind, results, rest))
    return program


def arrays(program: Program) -> set[Array]:
    """Of all instructions, those within a fused kernel too, which need no memory: what is not here exists nowhere."""
    return {array for lines in program.values() for line in lines for array in line.results}


def aliased(text: str) -> int:
    """How many results take the place of a parameter of the program: those of donated arguments."""
    head = text.split("\n", 1)[0]
    return len(re.findall(r"\{[\d, ]*\}: \(\d+, \{[\d, ]*\}, (?:may|must)-alias\)", head))


def gathered(program: Program) -> set[Array]:
    """What all-gathers make."""
    kinds = ("all-gather", "all-gather-start")
    return {array for lines in program.values() for line in lines if line.kind in kinds for array in line.results}


@dataclasses.dataclass(frozen=True)
class Sent:
    """One collective, as a computation's schedule has it. hidden: a matrix product or a kernel runs while it does."""

    kind: str
    moved: int  # entries
    hidden: bool
    looped: bool  # in the body of a loop: once a layer


def sent(program: Program) -> list[Sent]:
    """The collectives of a program; those of a loop once.

    A GPU's are a start and a done, two instructions. A TPU's may be too, or a chain of fusions that carry it out step
    by step beside a product, all with its channel. What stands in one instruction alone is waited for, unless that is
    a fusion with a product in it.
    """
    fused = {name for lines in program.values() for line in lines if line.kind == "fusion" for name in line.called}
    loops = {name for lines in program.values() for line in lines if line.kind == "while" for name in line.called}
    found = []
    for name in program.keys() - fused:
        lines = program[name]
        for kind, moved, first, last in _spans(program, lines):
            hidden = any(_works(program, line) for line in lines[first : last + 1])
            found.append(Sent(kind, moved, hidden, name in loops))
    return found


def _spans(program: Program, lines: list[Instruction]) -> Iterator[tuple[str, int, int, int]]:
    """Of each collective in a schedule: kind, entries, and the places of its first and last instruction."""
    done = {line.operands[0]: k for k, line in enumerate(lines) if line.kind.endswith("-done")}
    spans: dict[str, tuple[str, int, int, int]] = {}
    for k, line in enumerate(lines):
        inner = [line] if line.kind != "fusion" else [each for c in line.called for each in program[c]]
        for each in inner:
            kind = each.kind.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            key = each.name if line.kind != "fusion" else f"channel {each.channel}"
            size = _moved(each)
            _, _, first, _ = spans.get(key, (kind, size, k, k))
            spans[key] = (kind, size, first, done.get(line.name, k))
    yield from spans.values()


def _moved(collective: Instruction) -> int:
    """What goes in or what comes out, whichever is more. A start has both in its result, and a few numbers besides."""
    sizes = [array.size for array in collective.results if array.shape]
    if not collective.kind.endswith("-start"):
        return sum(sizes)
    return max(sum(sizes[: len(sizes) // 2]), sum(sizes[len(sizes) // 2 :]))


def _works(program: Program, line: Instruction) -> bool:
    """Whether an instruction is, or has in its kernel, a matrix product or a kernel of its own."""
    if line.kind in _PRODUCTS:
        return True
    if line.kind == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', line.rest)
        return target is not None and target[1].startswith(_KERNELS)
    return line.kind == "fusion" and any(_works(program, each) for name in line.called for each in program[name])
