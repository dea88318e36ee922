"""The reader of program texts, on texts that are short enough to be read by eye."""

import pytest
from hlo import Array, Sent, aliased, arrays, gathered, parse, sent

# As the compiler for GPUs writes: a gather that runs beside a product, one that is waited for, and, in a loop, a
# scatter of two gradients beside cuDNN's attention.
GPU = """
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1, 0}: (2, {}, must-alias) }, x={}

%product (p.1: bf16[8,64], p.2: bf16[64,16]) -> bf16[8,16] {
  %p.1 = bf16[8,64]{1,0} parameter(0)
  %p.2 = bf16[64,16]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,16]{1,0} dot(%p.1, %p.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (q: (f32[64,16], bf16[2,8])) -> (f32[64,16], bf16[2,8]) {
  %q = (f32[64,16]{1,0}, bf16[2,8]{1,0}) parameter(0)
  %g = f32[64,16]{1,0} get-tuple-element(%q), index=0
  %reduce-scatter-start = ((f32[64,16]{1,0}, f32[64]{0}), (f32[8,16]{1,0}, f32[8]{0})) reduce-scatter-start(%g, %g)
  %fmha = (bf16[2,8]{1,0}, u8[0]{0}) custom-call(%g), custom_call_target="__cudnn$fmhaSoftmax"
  %reduce-scatter-done = (f32[8,16]{1,0}, f32[8]{0}) reduce-scatter-done(%reduce-scatter-start)
  ROOT %t = (f32[64,16]{1,0}, bf16[2,8]{1,0}) tuple(%g, %fmha)
}

ENTRY %main (a: bf16[8,16], b: bf16[8,64]) -> bf16[8,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[8,64]{1,0} parameter(1)
  %all-gather-start.1 = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) all-gather-start(%a), channel_id=1, dimensions={0}
  %fusion.1 = bf16[8,16]{1,0} fusion(%b, %b), kind=kCustom, calls=%product
  %all-gather-done.1 = bf16[64,16]{1,0} all-gather-done(%all-gather-start.1)
  %all-gather-start.2 = (f32[4]{0}, f32[32]{0}) all-gather-start(%a), channel_id=2, dimensions={0}
  %all-gather-done.2 = f32[32]{0} all-gather-done(%all-gather-start.2)
  %fusion.2 = bf16[8,16]{1,0} fusion(%b, %all-gather-done.1), kind=kCustom, calls=%product
  ROOT %while.1 = (f32[64,16]{1,0}, bf16[2,8]{1,0}) while(%fusion.2), condition=%never, body=%body
}
"""
# As that for TPUs writes: one gather in three fusions, of which the second makes a product beside it; and one that is
# waited for.
TPU = """
HloModule jit_step, is_scheduled=true

%start (p.1: bf16[8,16]) -> (bf16[8,16], bf16[32,16]) {
  %p.1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[32,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.1), channel_id=7, dimensions={0}
  ROOT %c.1 = (bf16[8,16]{1,0}, bf16[32,16]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%step (p.2: bf16[8,16], p.3: bf16[8,8]) -> bf16[32,16] {
  %p.2 = bf16[8,16]{1,0} parameter(0)
  %p.3 = bf16[8,8]{1,0} parameter(1)
  %convolution.1 = bf16[8,16]{1,0} convolution(%p.3, %p.2), dim_labels=bf_io->bf
  ROOT %all-gather.2 = bf16[32,16]{1,0} all-gather(%p.2), channel_id=7, dimensions={0}
}

%done (p.4: bf16[32,16]) -> bf16[32,16] {
  %p.4 = bf16[32,16]{1,0} parameter(0)
  %all-gather.3 = bf16[32,16]{1,0} all-gather(%p.4), channel_id=7, dimensions={0}
  ROOT %c.2 = bf16[32,16]{1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[8,16], b: bf16[8,8]) -> bf16[32,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[8,8]{1,0} parameter(1)
  %fusion.1 = (bf16[8,16]{1,0}, bf16[32,16]{1,0}) fusion(%a), kind=kCustom, calls=%start
  %fusion.2 = bf16[32,16]{1,0} fusion(%a, %b), kind=kOutput, calls=%step
  %fusion.3 = bf16[32,16]{1,0} fusion(%fusion.2), kind=kCustom, calls=%done
  ROOT %all-reduce.1 = bf16[32,16]{1,0} all-reduce(%fusion.3), channel_id=8, to_apply=%sum
}
"""


def test_collectives_of_a_gpu():
    assert set(sent(parse(GPU))) == {
        Sent("all-gather", 64 * 16, hidden=True, looped=False),
        Sent("all-gather", 32, hidden=False, looped=False),
        Sent("reduce-scatter", 64 * 16 + 64, hidden=True, looped=True),
    }


def test_collectives_of_a_tpu():
    """The gather in three fusions is one."""
    assert sorted(sent(parse(TPU)), key=lambda each: each.kind) == [
        Sent("all-gather", 32 * 16, hidden=True, looped=False),
        Sent("all-reduce", 32 * 16, hidden=False, looped=False),
    ]


@pytest.mark.parametrize(("text", "product"), [(GPU, "dot"), (TPU, "convolution")])
def test_what_runs_beside_nothing_is_not_hidden(text, product):
    """The same schedules where the product is a sum, and attention is somebody else's call."""
    without = text.replace(f" {product}(", " add(").replace("__cudnn$fmhaSoftmax", "Sharding")
    assert not any(each.hidden for each in sent(parse(without)))


def test_arrays_and_what_is_gathered():
    program = parse(GPU)
    assert {Array("bf16", (64, 16)), Array("u8", (0,)), Array("f32", (8,))} <= arrays(program)
    assert gathered(program) == {
        Array("bf16", (8, 16)),
        Array("bf16", (64, 16)),
        Array("f32", (4,)),
        Array("f32", (32,)),
    }
    assert Array("f32", (8, 16)).size == 128


def test_results_that_take_the_place_of_arguments():
    assert aliased(GPU.lstrip()) == 2
    assert aliased(TPU.lstrip()) == 0
