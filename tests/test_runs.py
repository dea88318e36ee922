import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from scaling.errors import InputError
from scaling.runs import (
    Component,
    DataSpec,
    EvalSet,
    ModelShape,
    OptimizerSpec,
    Placement,
    Run,
    ScheduleSpec,
    canonical_json,
    run_from_dict,
    run_id,
    run_to_dict,
)

SHAPE = ModelShape(d_model=32, n_layers=2, n_heads=2, d_ff=128, vocab_size=257)
DATA = DataSpec(store="0123456789abcdef", sequence_length=64, eval_windows=32)
PLAIN = Run(SHAPE, DATA, 8, 100, OptimizerSpec(peak_lr=0.012), ScheduleSpec("cosine", warmup_steps=8))
FULL = Run(
    ModelShape(64, 3, 4, 176, 257, 32, 2, 64, "layernorm", "learned", "swiglu", True, True, "zero"),
    DataSpec("0123456789abcdef", 64, 32, seed=7),
    batch_size=8,
    steps=100,
    optimizer=OptimizerSpec(1.0, 0.8, 0.98, 1e-9, 0.0, None),
    schedule=ScheduleSpec("wsd", 8, 20, 0.0),
    precision="bf16",
    z_loss=1e-4,
    eval_points=3,
    seed=5,
)
# The fields that came after the first version, too.
LATER = dataclasses.replace(
    FULL,
    model=dataclasses.replace(FULL.model, biases=True, rotary_base=5e5, norm_epsilon=1e-5),
    data=dataclasses.replace(
        FULL.data,
        mixture=(Component("fedcba9876543210", 1.0), Component("0123456789abcdef", 3.0)),
        validation=(EvalSet("code", "fedcba9876543210"),),
    ),
    start="00112233445566ff",
)
# And those of experts, which have no biases.
EXPERTS = {"n_experts": 4, "experts_per_token": 2, "capacity_factor": 1.5, "balance_loss": 0.02, "router_z_loss": 0.0}
SPARSE = dataclasses.replace(PLAIN, model=dataclasses.replace(SHAPE, **EXPERTS))
GOLDEN = {
    "plain": (
        PLAIN,
        "d32x2-51.2k-e8272b8e123a",
        '{"batch_size":8,"data":{"eval_windows":32,"sequence_length":64,"store":"0123456789abcdef"},'
        '"model":{"d_ff":128,"d_model":32,"n_heads":2,"n_layers":2,"vocab_size":257},'
        '"optimizer":{"peak_lr":0.012},"schedule":{"kind":"cosine","warmup_steps":8},"schema":1,"steps":100}',
    ),
    "full": (
        FULL,
        "d64x3-51.2k-d2403f87497d",
        '{"batch_size":8,"data":{"eval_windows":32,"seed":7,"sequence_length":64,"store":"0123456789abcdef"},'
        '"eval_points":3,"model":{"activation":"swiglu","d_ff":176,"d_head":32,"d_model":64,"n_heads":4,'
        '"n_kv_heads":2,"n_layers":3,"n_positions":64,"norm":"layernorm","output_init":"zero",'
        '"positions":"learned","qk_norm":true,"tied_embeddings":true,"vocab_size":257},'
        '"optimizer":{"b1":0.8,"b2":0.98,"clip_norm":null,"eps":1e-09,"peak_lr":1.0,"weight_decay":0.0},'
        '"precision":"bf16","schedule":{"decay_steps":20,"final_fraction":0.0,"kind":"wsd","warmup_steps":8},'
        '"schema":1,"seed":5,"steps":100,"z_loss":0.0001}',
    ),
    "later": (
        LATER,
        "d64x3-51.2k-0cf8491dead7",
        '{"batch_size":8,"data":{"eval_windows":32,"mixture":[{"store":"0123456789abcdef","weight":0.75}'
        ',{"store":"fedcba9876543210","weight":0.25}],"seed":7,"sequence_length":64,"store":"0123456789a'
        'bcdef","validation":[{"name":"code","store":"fedcba9876543210"}]},"eval_points":3,"model":{"act'
        'ivation":"swiglu","biases":true,"d_ff":176,"d_head":32,"d_model":64,"n_heads":4,"n_kv_heads":2,'
        '"n_layers":3,"n_positions":64,"norm":"layernorm","norm_epsilon":1e-05,"output_init":"zero","pos'
        'itions":"learned","qk_norm":true,"rotary_base":500000.0,"tied_embeddings":true,"vocab_size":257'
        '},"optimizer":{"b1":0.8,"b2":0.98,"clip_norm":null,"eps":1e-09,"peak_lr":1.0,"weight_decay":0.0'
        '},"precision":"bf16","schedule":{"decay_steps":20,"final_fraction":0.0,"kind":"wsd","warmup_ste'
        'ps":8},"schema":1,"seed":5,"start":"00112233445566ff","steps":100,"z_loss":0.0001}',
    ),
    "sparse": (
        SPARSE,
        "d32x2-51.2k-41404d9ef94e",
        '{"batch_size":8,"data":{"eval_windows":32,"sequence_length":64,"store":"0123456789abcdef"},'
        '"model":{"balance_loss":0.02,"capacity_factor":1.5,"d_ff":128,"d_model":32,"experts_per_token":2,'
        '"n_experts":4,"n_heads":2,"n_layers":2,"router_z_loss":0.0,"vocab_size":257},'
        '"optimizer":{"peak_lr":0.012},"schedule":{"kind":"cosine","warmup_steps":8},"schema":1,"steps":100}',
    ),
}


OTHER = {  # of each section of LATER, changes that bring in every field
    "model": [
        *({"d_model": 128}, {"n_layers": 4}, {"n_heads": 8}, {"d_ff": 256}, {"vocab_size": 300}, {"d_head": 16}),
        *({"n_kv_heads": 4}, {"n_positions": 128}, {"norm": "rmsnorm"}, {"positions": "rotary", "n_positions": None}),
        *({"biases": False}, {"rotary_base": 1e4}, {"norm_epsilon": 1e-6}),
        *({"activation": "gelu"}, {"tied_embeddings": False}, {"qk_norm": False}, {"output_init": "depth_scaled"}),
    ],
    "experts": [
        *({"n_experts": 8}, {"experts_per_token": 1}, {"capacity_factor": None}, {"balance_loss": 0.01}),
        {"router_z_loss": 0.001},
    ],
    "data": [
        {"store": "fedcba9876543210"},
        {"sequence_length": 32},
        {"eval_windows": 16},
        {"seed": 8},
        {"mixture": ()},
        {"validation": ()},
    ],
    "optimizer": [
        *({"peak_lr": 2.0}, {"b1": 0.9}, {"b2": 0.99}, {"eps": 1e-6}, {"weight_decay": 0.1}, {"clip_norm": 1.0}),
    ],
    "schedule": [{"kind": "cosine", "decay_steps": 0}, {"warmup_steps": 9}, {"decay_steps": 30}, {"final_fraction": 1}],
    "": [
        {"batch_size": 4},
        {"steps": 50},
        {"precision": "fp32"},
        {"z_loss": 0.0},
        {"eval_points": 4},
        {"seed": 6},
        {"start": None},
    ],
}


def all_fields(value: Any) -> list[tuple[Any, dataclasses.Field]]:
    """Every field of a spec and of the specs in it, with the spec it belongs to."""
    mine = [(value, f) for f in dataclasses.fields(value)]
    inner = [getattr(value, f.name) for _, f in mine]
    return mine + [pair for item in inner if dataclasses.is_dataclass(item) for pair in all_fields(item)]


def changed(**changes: Any) -> dict[str, Any]:
    """The content of PLAIN's run.json with `section__name=value` set."""
    values = json.loads(canonical_json(PLAIN))
    for key, value in changes.items():
        *section, name = key.split("__")
        (values[section[0]] if section else values)[name] = value
    return values


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_identity(name):
    """A change here renames every run there is: finished ones would be trained again. Do not; add a default."""
    run, expected_id, expected_json = GOLDEN[name]
    assert canonical_json(run) == expected_json
    assert run_id(run) == expected_id


def test_the_golden_runs_use_every_field():
    """So that a renamed field, or a changed default, cannot pass the test above."""
    sparse = {field.name: owner for owner, field in all_fields(SPARSE)}
    for owner, field in all_fields(LATER):
        owner = sparse[field.name] if field.name in EXPERTS else owner
        assert getattr(owner, field.name) != field.default, field.name


def test_defaults_are_omitted_so_that_a_new_field_renames_nothing():
    """The text of PLAIN names its required fields and no other: a field with a default that is added is not in it."""
    required = [f.name for _, f in all_fields(PLAIN) if f.default is dataclasses.MISSING]
    values = json.loads(canonical_json(PLAIN))
    written = [key for section in (values, *values.values()) if isinstance(section, dict) for key in section]
    assert sorted(written) == sorted([*required, "schema"])


def test_giving_a_default_is_giving_nothing():
    defaults = {f.name: f.default for f in dataclasses.fields(ModelShape) if f.default is not dataclasses.MISSING}
    explicit = dataclasses.replace(PLAIN, model=dataclasses.replace(SHAPE, **defaults))
    assert run_id(explicit) == run_id(PLAIN)


@pytest.mark.parametrize("run", [PLAIN, FULL, LATER, SPARSE])
def test_round_trip_through_json(run):
    assert run_from_dict(json.loads(json.dumps(run_to_dict(run)))) == run
    assert run_from_dict(json.loads(canonical_json(run))) == run


def test_every_field_is_part_of_the_identity():
    fields = {f.name for section, f in all_fields(LATER) if not dataclasses.is_dataclass(getattr(section, f.name))}
    assert {name for changes in OTHER.values() for change in changes for name in change} == fields
    runs = [LATER, *(dataclasses.replace(LATER, **change) for change in OTHER[""])]
    sparse = [dataclasses.replace(SPARSE.model, **change) for change in OTHER["experts"]]
    runs += [SPARSE, *(dataclasses.replace(SPARSE, model=model) for model in sparse)]
    for name in OTHER.keys() - {"", "experts"}:
        parts = [dataclasses.replace(getattr(LATER, name), **change) for change in OTHER[name]]
        runs += [dataclasses.replace(LATER, **{name: part}) for part in parts]
    assert len({run_id(run) for run in runs}) == len(runs)


def test_numbers_have_one_form():
    one = OptimizerSpec(peak_lr=1, weight_decay=0, clip_norm=2)
    same = OptimizerSpec(peak_lr=np.float64(1.0), weight_decay=np.int32(0), clip_norm=2.0)
    ids = {run_id(dataclasses.replace(PLAIN, optimizer=spec)) for spec in (one, same)}
    assert len(ids) == 1
    numpy_ints = ModelShape(*(np.int64(n) for n in (32, 2, 2, 128, 257)))
    assert run_id(dataclasses.replace(PLAIN, model=numpy_ints, steps=np.int32(100))) == run_id(PLAIN)
    assert type(numpy_ints.d_model) is int
    assert type(one.peak_lr) is float


def test_placement_is_no_part_of_the_identity():
    """By construction: a Run holds none of Placement's fields."""
    assert not {f.name for f in dataclasses.fields(Placement)} & {f.name for f in dataclasses.fields(Run)} - {"data"}
    assert isinstance(PLAIN.data, DataSpec)


def test_tokens_are_whole_steps():
    assert (PLAIN.batch_tokens, PLAIN.tokens) == (512, 51_200)


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, "512"), (2, "1.02k"), (1953, "1M"), (200_000, "102M"), (2 * 10**9, "1.02T")]
)
def test_the_name_tells_the_tokens(steps, expected):
    """1953 steps are 999,936 tokens: rounded to three digits, that is 1M and not 1e+03k."""
    schedule = ScheduleSpec("cosine", warmup_steps=0)
    assert run_id(dataclasses.replace(PLAIN, steps=steps, schedule=schedule)).split("-")[1] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__d_model": 64, "model__n_heads": 6}, "model.n_heads=6 does not divide d_model=64"),
        ({"model__n_heads": 4, "model__n_kv_heads": 3}, "model.n_kv_heads=3 does not divide n_heads=4"),
        ({"model__d_model": 0}, "model.d_model=0 is not positive"),
        ({"model__n_layers": -1}, "model.n_layers=-1 is not positive"),
        ({"model__d_model": 6}, "rotary positions need an even head size, not 3"),
        ({"model__d_head": 5}, "rotary positions need an even head size, not 5"),
        ({"model__n_positions": 64}, "learned positions need n_positions; rotary ones have none"),
        ({"model__positions": "learned"}, "model.n_positions=None with positions='learned'"),
        (
            {"model__positions": "learned", "model__n_positions": 32},
            "model.n_positions=32 is below data.sequence_length=64",
        ),
        ({"model__norm": "rms"}, "model.norm='rms' is unknown (did you mean rmsnorm?)"),
        ({"model__activation": "relu"}, "model.activation='relu' is unknown"),
        ({"model__tied_embeddings": 1}, "model.tied_embeddings=1 is not of type bool"),
        ({"model__d_model": 32.0}, "model.d_model=32.0 is not of type int"),
        ({"model__d_model": True}, "model.d_model=True is not of type int"),
        ({"model__d_model": "32"}, "model.d_model='32' is not of type int"),
        ({"data__sequence_length": 1}, "data.sequence_length=1 is below 2"),
        ({"data__eval_windows": 1}, "data.eval_windows=1 is below 2: no standard error"),
        ({"data__seed": -1}, "data.seed=-1 is negative"),
        ({"data__store": 5}, "data.store=5 is not of type str"),
        ({"optimizer__peak_lr": 0}, "optimizer.peak_lr=0.0 is not positive"),
        ({"optimizer__peak_lr": float("nan")}, "optimizer.peak_lr=nan is not finite"),
        ({"optimizer__peak_lr": "1e-3"}, "optimizer.peak_lr='1e-3' is not of type float"),
        ({"optimizer__b2": 1.0}, "optimizer.b2=1.0 is outside [0, 1)"),
        ({"optimizer__weight_decay": -0.1}, "optimizer.weight_decay=-0.1 is negative"),
        ({"optimizer__clip_norm": 0.0}, "optimizer.clip_norm=0.0 is not positive"),
        ({"optimizer__eps": 0}, "optimizer.eps=0.0 is not positive"),
        ({"schedule__kind": "linear"}, "schedule.kind='linear' is unknown"),
        ({"schedule__kind": "wsd"}, "wsd needs decay_steps; cosine has none"),
        ({"schedule__decay_steps": 5}, "schedule.decay_steps=5 with kind='cosine'"),
        ({"schedule__final_fraction": 1.1}, "schedule.final_fraction=1.1 is outside [0, 1]"),
        ({"schedule__warmup_steps": 101}, "warm-up and decay take 101 steps of a run of 100"),
        ({"steps": 0, "schedule__warmup_steps": 0}, "steps=0 is not positive"),
        ({"batch_size": 0}, "batch_size=0 is not positive"),
        ({"eval_points": 0}, "eval_points=0 is not positive"),
        ({"seed": -1}, "seed=-1"),
        ({"z_loss": -1}, "z_loss=-1.0"),
        ({"precision": "fp16"}, "run.precision='fp16' is unknown"),
        ({"schema": 2}, "schema 2 of a run; this version reads 1"),
        ({"model": 5}, "model: expected a mapping for ModelShape, got 5"),
    ],
)
def test_what_is_impossible_is_refused_by_name(change, message):
    with pytest.raises(InputError) as error:
        run_from_dict(changed(**change))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__n_head": 2}, "model: unknown key 'n_head' (did you mean n_heads?)"),
        ({"data__sequence_lenght": 64}, "data: unknown key 'sequence_lenght' (did you mean sequence_length?)"),
        ({"optimizer__lr": 1.0}, "optimizer: unknown key 'lr'"),
        ({"step": 5}, "unknown key 'step' (did you mean steps?)"),
    ],
)
def test_a_misspelt_key_gets_the_nearest_valid_one(change, message):
    with pytest.raises(InputError) as error:
        run_from_dict(changed(**change))
    assert message in str(error.value)


def test_an_error_in_a_file_names_the_file():
    with pytest.raises(InputError, match=r"^a/run\.json\.model: unknown key 'n_head'"):
        run_from_dict(changed(model__n_head=2), "a/run.json")


def test_missing_keys_are_named():
    values = changed()
    del values["model"]["d_ff"], values["model"]["n_heads"]
    with pytest.raises(InputError, match="model: missing n_heads, d_ff"):
        run_from_dict(values)


@pytest.mark.parametrize("content", [5, None, "text", [1, 2]])
def test_a_run_file_that_holds_no_mapping_is_refused(content):
    with pytest.raises(InputError, match=r"run\.json"):
        run_from_dict(content, "a/run.json")


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement(data=3), "placement.data=3 does not divide batch_size=8 (the nearest that it divides is 9)"),
        (Placement(data=4, fsdp=4), "data x fsdp=16 does not divide batch_size=8 (the nearest that it divides is 16)"),
        (Placement(data=4, microbatch=2), "data=4 does not divide microbatch=2 (the nearest that it divides is 4)"),
        (Placement(microbatch=3), "microbatch=3 does not divide batch_size=8 (the nearest that does is 4)"),
        (Placement(tensor=4), "tensor=4 does not divide n_kv_heads=2 (the nearest that does is 2)"),
        (Placement(tensor=2), "tensor=2 does not divide vocab_size=257 (the nearest that does is 1)"),
        (Placement(stage=4), "stage=4 does not divide vocab_size=257"),
        (Placement(context=3), "context=3 does not divide sequence_length=64 (the nearest that does is 4)"),
        (Placement(context=64), "2 x context=128 does not divide sequence_length=64 (the nearest that does is 64)"),
        (Placement(fsdp=8, tensor=1, microbatch=8, loss_chunk=5), "loss_chunk=5 does not divide sequence_length=64"),
        (Placement(expert=2), "expert=2 of a model without experts"),
        (Placement(stage=2, scan_layers=False), "stage needs scan_layers"),
    ],
)
def test_a_placement_that_cannot_hold_the_run_is_refused(placement, message):
    with pytest.raises(InputError) as error:
        placement.check(PLAIN)
    assert message in str(error.value)


def test_a_placement_checks_itself():
    with pytest.raises(InputError, match=r"placement\.fsdp=0 is not positive"):
        Placement(fsdp=0)
    with pytest.raises(InputError, match=r"placement\.remat='some' is unknown"):
        Placement(remat="some")
    with pytest.raises(InputError, match=r"placement\.zero=0 is unknown \(valid: 1, 2, 3\)"):
        Placement(zero=0)
    Placement(data=4, fsdp=2, microbatch=8, loss_chunk=16).check(PLAIN)
