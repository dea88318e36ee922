"""The peer: the same training step by transformers' GPT-2 on PyTorch, in a process of its own.

It is asked through a pipe, so that the two libraries never share a process: each then has its own thread pool, and the
one whose turn it is not sleeps in a read. In one process the pool that waits still spins for a while, beside the other
(docs/speed.md). PyTorch comes with the extra `benchmark`; only this module's process imports it.

A peer is as good as its options: for a shape and a precision it is built with each of OPTIONS in turn, and the fastest
is kept. That takes one thing at a time, from what usually wins: attention, then the optimizer's kernel, then
torch.compile, where that is asked for.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from scaling.errors import InputError
from scaling.files import parse_json
from scaling.runs import OptimizerSpec
from scaling.specs import require
from scaling.speed.shapes import Shape, token_batches
from scaling.speed.stopwatch import stopwatch

EXTRA = "pip install 'scaling[benchmark]'"
FIRST = {"attention": "sdpa", "fused": True, "compiled": False}
TRIED = ({"attention": "eager"}, {"fused": False}, {"compiled": True})  # each against the best so far
Options = dict[str, Any]


def installed() -> bool:
    """Whether the extra is here."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


class Peer:
    """A step in the peer's process, its options chosen; `description` says which, and what the others took."""

    def __init__(self, process: subprocess.Popen, request: dict[str, Any]):
        self._process = process
        self.description: str = self._ask(request)

    def milliseconds(self) -> float:
        """A step, the mean of several."""
        return self._ask({"time": True})

    def _ask(self, request: dict[str, Any]) -> Any:
        with contextlib.suppress(BrokenPipeError):  # it has ended: so have its answers
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        require(bool(line), "the peer's process has ended; its error is above", "--peer=none measures ours alone")
        return parse_json(line, "the peer's process")["answer"]


@contextlib.contextmanager
def torch_peer(
    shape: Shape, precision: str, threads: int, compiled: bool = True, device: str = "cpu"
) -> Iterator[Peer]:
    """The peer's step of a shape, for as long as the context lasts. compiled: torch.compile may be taken.

    Raises InputError where the extra is not installed, or its process ends.
    """
    if not installed():
        raise InputError("the peer needs torch and transformers, which are not here", do=f"{EXTRA}, or --peer=none")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TRANSFORMERS_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "scaling.speed.peer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    build = {"shape": vars(shape), "precision": precision, "compiled": compiled, "device": device}
    try:
        yield Peer(process, {"threads": threads, "build": build})
    finally:
        process.kill()
        process.communicate()


def build(shape: Shape, precision: str, device: str, options: Options) -> Callable[[], Any]:
    """A training step with these options: forward, backward, clipping, AdamW. It returns its loss, a tensor."""
    import torch

    model = gpt2(shape, options["attention"], device)
    parameters = list(model.parameters())
    spec = OptimizerSpec(peak_lr=1e-3)
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, spec.peak_lr, (spec.b1, spec.b2), spec.eps, fused=options["fused"])
    batches = torch.from_numpy(token_batches(shape.vocab_size, shape.batch, shape.length)).long().to(device)
    mixed = precision == "bf16"

    def loss_of(tokens_BxM: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            return mean_loss(model, tokens_BxM)

    loss_function = torch.compile(loss_of, dynamic=False) if options["compiled"] else loss_of
    taken = 0

    def step() -> torch.Tensor:
        nonlocal taken
        loss = loss_function(batches[taken % len(batches)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, spec.clip_norm)
        optimizer.step()
        taken += 1
        return loss

    return step


def gpt2(shape: Shape, attention: str, device: str) -> Any:
    """A GPT2LMHeadModel of a shape, without dropout, newly initialised."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.length,
        n_embd=shape.d_model,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        attn_implementation=attention,
    )
    return transformers.GPT2LMHeadModel(config).to(device).train()


def mean_loss(model: Any, tokens_BxM: Any) -> Any:
    """The mean cross-entropy of all tokens of the windows but the first, as ours."""
    import torch

    logits_BxLxV = model(tokens_BxM[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits_BxLxV.flatten(0, 1), tokens_BxM[:, 1:].flatten())


def best(shape: Shape, precision: str, compiled: bool, device: str) -> tuple[Callable[[], float], str]:
    """The fastest of the options' stopwatches, and what was tried, in words."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    chosen, (clock, least), said = FIRST, _tried(shape, precision, device, FIRST, wait), []
    said.append(f"{_words(FIRST)} {least:.4g} ms")
    for change in TRIED if compiled else TRIED[:-1]:
        options = {**chosen, **change}
        try:
            other, milliseconds = _tried(shape, precision, device, options, wait)
        except Exception as error:  # of torch.compile, most often: no compiler of C++ here
            said.append(f"{_words(options)} failed: {type(error).__name__}")
            continue
        said.append(f"{_words(options)} {milliseconds:.4g} ms")
        if milliseconds < least:
            chosen, clock, least = options, other, milliseconds
    torch_is = f"transformers' GPT-2 on PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
    return clock, f"{torch_is}, {_words(chosen)} (tried: {'; '.join(said)})"


def _tried(
    shape: Shape, precision: str, device: str, options: Options, wait: Callable[[], None]
) -> tuple[Callable[[], float], float]:
    """The stopwatch of a step with these options, and what it shows, the lesser of two looks."""
    clock = stopwatch(build(shape, precision, device, options), wait)
    return clock, min(clock(), clock())


def _words(options: Options) -> str:
    optimizer = "fused" if options["fused"] else "foreach"
    return f"{options['attention']} attention, {optimizer} AdamW, {'compiled' if options['compiled'] else 'eager'}"


def serve() -> None:
    """Answers requests, a line of JSON each, until standard input ends: how a step was built, or milliseconds of it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    import torch

    clock: Callable[[], float] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if asked := request.get("build"):
            torch.set_num_threads(request["threads"])
            clock, answer = best(Shape(**asked.pop("shape")), **asked)
        else:
            answer = clock()
        print(json.dumps({"answer": answer}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
