import pytest

from scaling.models.counts import counts
from scaling.sweeps.cells import all_stores
from scaling.sweeps.grid import make_grid
from scaling.sweeps.plan import plan_rows


def test_a_row_a_cell_with_what_it_will_compute(make_config, make_texts):
    texts = make_texts(1e6)
    cells, _ = make_grid(make_config("study", data__max_epochs=30.0), texts)
    rows = plan_rows(cells, all_stores(texts))
    assert [row["run"] for row in rows] == [cell.id for cell in cells]
    for row, cell in zip(rows, cells, strict=True):
        run = cell.run
        counted = counts(run.model, run.data.sequence_length, run.tokens)
        assert {name: row[name] for name in counted} == counted
        assert row["D"] == run.steps * run.batch_size * 64 == row["steps"] * row["batch_tokens"]
        assert row["flops_error"] == row["C"] / row["budget"] - 1
        assert abs(row["flops_error"]) < 0.005
        assert row["peak_lr"] == run.optimizer.peak_lr
        assert row["tokens_per_parameter"] == row["D"] / row["N"]
        # 15,624 windows of 64 tokens and their targets are what 1e6 tokens hold
        assert row["epochs"] == pytest.approx(row["D"] / (15_624 * 64 + 64), rel=1e-4)
        assert row["unique_tokens"] == min(row["D"], (1_000_000 - 1) // 64 * 64)


def test_the_state_is_sixteen_bytes_a_parameter(make_config, make_texts):
    """fp32: the parameter, its gradient, and Adam's two moments; 8e9 parameters are 119.2 GiB."""
    texts = make_texts(1e15, 32_000)
    cells, _ = make_grid(make_config("large", grid__budgets=(4e19,), grid__sizes=4), texts)
    for row in plan_rows(cells, all_stores(texts)):
        assert row["state_gib_est"] == pytest.approx(119.2 * row["N"] / 8e9, rel=1e-3)
