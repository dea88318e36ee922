"""Which shape a size has: the 50 models of Hoffmann et al. 2022, and a formula for any size from 1e4 to 1e12."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

from scaling.errors import InputError, nearest
from scaling.models.counts import parameters
from scaling.runs import ModelShape

SMALLEST, LARGEST = 1e4, 1e12
WORST_MISS = 0.3  # of ln N

# Hoffmann et al. 2022, Table A9: millions of parameters, d_model, ffw_size, kv_size, n_heads, n_layers.
_TABLE_A9 = """
44 512 2048 64 8 8        57 576 2304 64 9 9         74 640 2560 64 10 10      90 640 2560 64 10 13
106 640 2560 64 10 16     117 768 3072 64 12 12      140 768 3072 64 12 15     163 768 3072 64 12 18
175 896 3584 64 14 14     196 896 3584 64 14 16      217 896 3584 64 14 18     251 1024 4096 64 16 16
278 1024 4096 64 16 18    306 1024 4096 64 16 20     425 1280 5120 128 10 18   489 1280 5120 128 10 21
509 1408 5632 128 11 18   552 1280 5120 128 10 24    587 1408 5632 128 11 21   632 1536 6144 128 12 19
664 1408 5632 128 11 24   724 1536 6144 128 12 22    816 1536 6144 128 12 25   893 1792 7168 128 14 20
1018 1792 7168 128 14 23  1143 1792 7168 128 14 26   1266 2048 8192 128 16 22  1424 2176 8704 128 17 22
1429 2048 8192 128 16 25  1593 2048 8192 128 16 28   1609 2176 8704 128 17 25  1731 2304 9216 128 18 24
1794 2176 8704 128 17 28  2007 2304 9216 128 18 28   2283 2304 9216 128 18 32  2298 2560 10240 128 20 26
2639 2560 10240 128 20 30 2980 2560 10240 128 20 34  3530 2688 10752 128 22 36 3802 2816 11264 128 22 36
4084 2944 11776 128 22 36 4516 3072 12288 128 24 36  6796 3584 14336 128 28 40 9293 4096 16384 128 32 42
11452 4352 17408 128 32 47 12295 4608 18432 128 36 44 12569 4608 18432 128 32 47 13735 4864 19456 128 32 47
14940 4992 19968 128 32 49 16183 5120 20480 128 40 47
"""
_NUMBERS = [int(word) for word in _TABLE_A9.split()]
CHINCHILLA = {f"{row[0]}M": row[1:] for row in zip(*[iter(_NUMBERS)] * 6, strict=True)}


def chinchilla_shape(name: str, vocab_size: int = 32_000, **options: Any) -> ModelShape:
    """The shape of a published size, by its label ("74M"). `options` are further fields of ModelShape."""
    if name not in CHINCHILLA:
        digits = name.rstrip("Mm")
        if digits.isdigit() and int(digits) > 0:  # a size is near by its number, not by its spelling
            closest = min(CHINCHILLA, key=lambda known: abs(math.log(int(known[:-1]) / int(digits))))
            do = f"did you mean {closest}?"
        else:
            do = nearest(name, CHINCHILLA)
        raise InputError(f"unknown size {name!r}", where="Hoffmann et al. 2022, Table A9", do=do)
    d_model, d_ff, d_head, n_heads, n_layers = CHINCHILLA[name]
    return ModelShape(d_model, n_layers, n_heads, d_ff, vocab_size, d_head=d_head, **options)


def depth(width: float) -> float:
    """Layers for a width: 8 at 512, above as width^0.77, as in Table A9 (47 at 5,120), below as width^0.41."""
    return 8 * (width / 512) ** (0.77 if width > 512 else 0.41)


@functools.lru_cache(maxsize=1024)
def shape_for(size: float, vocab_size: int, n_layers: int | None = None, **options: Any) -> ModelShape:
    """The shape nearest to `size` parameters with usual proportions: d_ff = 4 D (8/3 D for SwiGLU), N = `depth`(D).

    Widths are about 10 % apart, by powers of two for whole tiles. A depth may be 15 % off where that comes closer, but
    no more: where layers are few, one more changes the loss by as much as the isoFLOP curve is deep. So the smallest
    sizes are met within a factor of 1.31; above 1e7 parameters all are met within 9 %.
    n_layers: this depth, whatever is usual; the width is the one whose N comes nearest, of four times as many widths,
    so that several depths can be compared at one size (within 4 % above 1e5 parameters).
    `options` are further fields of ModelShape; n_kv_heads leaves only widths whose heads it divides. A size counts all
    parameters: n_experts makes its model narrower, not larger; with up to 128, those above 1e7 are met within 12 %.
    Raises InputError outside 1e4 to 1e12, and for a size that the vocabulary, the layers or the heads alone exceed.
    """
    if not SMALLEST <= size <= LARGEST:
        raise InputError(f"no shape for {size:.3g} parameters", do=f"sizes are {SMALLEST:.0e} to {LARGEST:.0e}")
    best, best_cost = None, math.inf
    for width in _widths(2 * size, finer=1 if n_layers is None else 4):
        heads = options.get("n_heads") or _heads(width, of=options.get("n_kv_heads") or 1)
        if heads is None:
            continue
        usual = n_layers or depth(width)
        for layers in _depths(width) if n_layers is None else [n_layers]:
            shape = _shape(width, layers, heads, vocab_size, options)
            miss = math.log(parameters(shape).N / size)
            # A tenth of the depth's own miss: size decides, and proportions settle what is nearly equal.
            cost = abs(miss) + 0.1 * abs(math.log(layers / usual))
            if cost < best_cost:
                best, best_cost = shape, cost
        if parameters(shape).N > 2 * size:
            break
    if best is None or abs(math.log(parameters(best).N / size)) > WORST_MISS:
        given = {"vocab_size": vocab_size, "n_layers": n_layers, "n_kv_heads": options.get("n_kv_heads")}
        given["n_experts"] = options.get("n_experts")
        asked = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        instead = "no width has such heads" if best is None else f"the nearest has {parameters(best).N:,}"
        raise InputError(
            f"no shape of {size:.3g} parameters with {asked}: {instead}",
            do="another size, less of these, or tied embeddings, which save a table",
        )
    return best


def _shape(width: int, n_layers: int, heads: int, vocab_size: int, options: dict[str, Any]) -> ModelShape:
    swiglu = options.get("activation") == "swiglu"
    tile = _step(width)
    d_ff = tile * round(8 * width / 3 / tile) if swiglu else 4 * width
    return dataclasses.replace(ModelShape(width, n_layers, heads, d_ff, vocab_size), **options)


def _heads(width: int, of: int) -> int | None:
    """The most heads of usual size, a multiple `of` the key-value heads; None where the width has no such number."""
    target = 128 if width >= 1280 else 64 if width >= 512 else 32
    most = range(max(1, width // target), 0, -1)
    return next((h for h in most if width % h == 0 and width // h % 2 == 0 and h % of == 0), None)


def _depths(width: int) -> set[int]:
    usual = depth(width)
    return {round(usual), *range(math.ceil(0.85 * usual), math.floor(1.15 * usual) + 1)}


def _widths(size: float, finer: int) -> Iterator[int]:
    """All widths of models of at most `size`: a block alone has more parameters than its width squared."""
    width = 8
    while width**2 <= size:
        yield width
        width += max(2, _step(width) // finer)


def _step(width: int) -> int:
    return max(4, 2 ** int(math.log2(width / 8)))
