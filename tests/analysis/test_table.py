"""The table of runs: what is used, what is dropped and said, what is refused."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.columns import parse_columns
from scaling.analysis.curves import curves_from_frame, read_curves
from scaling.analysis.table import read_table, table_from_frame
from scaling.errors import InputError


def codes(table) -> set[str]:
    return {warning["code"] for warning in table.warnings}


def test_csv_and_frame_give_the_same_table(sweep, tmp_path):
    frame = sweep(noise=0.01)
    path = tmp_path / "runs.csv"
    frame.to_csv(path, index=False)
    from_csv, from_frame = read_table(path), table_from_frame(frame)
    for name in ("N_R", "D_R", "C_R", "loss_R", "row_R", "cluster_R", "budget_R"):
        np.testing.assert_array_equal(getattr(from_csv, name), getattr(from_frame, name))
    assert from_csv.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert from_csv.columns == ("run", "N", "D", "C", "loss")


def test_compute_defaults_to_6nd_in_float64():
    # 6ND of these integers is 8.4e23: it overflows int64.
    frame = pd.DataFrame({"N": [10**11, 2 * 10**11], "D": [14 * 10**11, 7 * 10**11], "loss": [2.0, 2.1]})
    table = table_from_frame(frame)
    np.testing.assert_array_equal(table.C_R, [8.4e23, 8.4e23])
    assert "six_nd_assumed" in codes(table)


def test_rows_that_are_not_runs_to_fit_are_dropped_with_their_reason(sweep):
    frame = sweep()
    frame["status"], frame["reason"], frame["role"] = "done", "", ""
    frame.loc[2, ["status", "reason", "loss"]] = ["failed", "loss is not finite", np.nan]
    frame.loc[5, "role"] = "prediction"
    table = table_from_frame(frame)
    assert table.dropped == (
        {"row": 2, "reason": "status failed: loss is not finite"},
        {"row": 5, "reason": "held out to test the prediction"},
    )
    assert table.rows == 28
    assert sorted(table.row_R) == sorted(set(range(28)) - {2, 5})


def test_exact_duplicates_are_kept_with_a_warning(sweep):
    frame = sweep()
    table = table_from_frame(pd.concat([frame, frame.iloc[[3]]]))
    assert len(table.N_R) == 29
    assert "duplicate_rows" in codes(table)
    assert "duplicate_rows" not in codes(table_from_frame(frame))


def test_marked_outliers_are_kept_unless_dropped_and_both_tables_exist(sweep):
    frame = sweep()
    frame["outlier"] = False
    frame.loc[[1, 4], "outlier"] = True
    kept, dropped = table_from_frame(frame), table_from_frame(frame, drop_outliers=True)
    assert (len(kept.N_R), len(kept.alternative.N_R)) == (28, 26)
    assert (len(dropped.N_R), len(dropped.alternative.N_R)) == (26, 28)
    assert [drop["row"] for drop in dropped.dropped] == [1, 4]
    assert "outliers" in codes(kept) & codes(dropped)


def test_budgets_are_found_by_gaps_of_five_per_cent():
    # Two groups 6 % apart; 4 % inside; three sizes at a third C are no budget.
    C = np.array([1.0, 1.01, 1.02, 1.04, 1.11, 1.11, 1.11, 1.13, 3.0, 3.0, 3.0]) * 1e18
    N = np.array([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]) * 1e7
    frame = pd.DataFrame({"N": N, "D": C / (6 * N), "C": C, "loss": 3.0}).sample(frac=1, random_state=0)
    table = table_from_frame(frame)
    np.testing.assert_array_equal(table.budget_R[np.argsort(frame.index)], [0] * 4 + [1] * 4 + [-1] * 3)


def test_a_budget_column_is_believed():
    C = np.array([1.0, 1.0, 1.0, 1.2, 5.0, 5.0]) * 1e18
    N = np.array([1, 2, 3, 4, 1, 2]) * 1e7
    frame = pd.DataFrame({"N": N, "D": C / (6 * N), "C": C, "loss": 3.0, "budget": ["a"] * 4 + ["b"] * 2})
    np.testing.assert_array_equal(table_from_frame(frame).budget_R, [0, 0, 0, 0, 1, 1])


def test_the_cluster_is_the_trunk_else_the_run_else_the_row(sweep):
    frame = sweep().head(6)
    frame["trunk"] = ["t", "t", "", "", None, ""]
    frame["run"] = ["a", "b", "c", "c", "", ""]
    np.testing.assert_array_equal(table_from_frame(frame).cluster_R, [0, 0, 1, 1, 2, 3])


def test_bits_become_nats_and_the_report_says_so(sweep):
    table = table_from_frame(sweep(), loss_unit="bits")
    np.testing.assert_allclose(table.loss_R, sweep()["loss"] * np.log(2), rtol=1e-15)
    assert "bits" in table.conventions["loss"]
    with pytest.raises(InputError, match="did you mean bits"):
        table_from_frame(sweep(), loss_unit="bit")


def test_columns_may_have_other_names(sweep, tmp_path):
    frame = sweep()
    theirs = frame.rename(columns={"run": "name", "N": "params", "D": "tokens", "loss": "val/loss"})
    theirs.to_csv(tmp_path / "runs.csv", index=False)
    columns = {"run": "name", "N": "params", "D": "tokens", "loss": "val/loss"}
    mapped, ours = read_table(tmp_path / "runs.csv", columns=columns), table_from_frame(frame)
    for name in ("N_R", "D_R", "C_R", "loss_R", "cluster_R", "budget_R"):
        np.testing.assert_array_equal(getattr(mapped, name), getattr(ours, name))
    assert mapped.conventions["N"] == "parameters, as given in column params"
    assert mapped.conventions["loss"] == "nats per token, as given in column val/loss"
    with pytest.raises(InputError, match=r"runs\.csv: no column parms .*did you mean params"):
        read_table(tmp_path / "runs.csv", columns={"N": "parms"})


def test_another_loss_may_be_fitted_and_their_column_wins_over_ours(sweep):
    frame = sweep().assign(loss_code=sweep()["loss"] / 2)
    np.testing.assert_array_equal(table_from_frame(frame, columns={"loss": "loss_code"}).loss_R, frame["loss"] / 2)


def test_bits_per_byte_stay_what_they_are(sweep):
    table = table_from_frame(sweep().assign(bits_per_byte=1.1), columns={"loss": "bits_per_byte"}, loss_unit="bpb")
    np.testing.assert_array_equal(table.loss_R, 1.1)
    assert (table.unit, table.conventions["loss"]) == (
        "bits per byte",
        "bits per byte, as given in column bits_per_byte",
    )


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["N"], "--columns: 'N' is no column map"),
        (["N="], "is no column map"),
        (["N=a", "N=b"], "N is given twice"),
    ],
)
def test_a_column_map_that_is_none_is_refused(pairs, message):
    with pytest.raises(InputError, match=message):
        parse_columns(pairs, "columns")
    assert parse_columns(["loss=a=b", " N = n "], "columns") == {"loss": "a=b", "N": "n"}


def test_finished_is_done_in_the_words_of_weights_and_biases(sweep):
    frame = sweep().assign(status=["finished"] * 27 + ["crashed"])
    assert table_from_frame(frame).dropped == ({"row": 27, "reason": "status crashed"},)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="D"), "no column D"),
        (lambda f: f.assign(loss=[*f["loss"][:-1], np.nan]), "loss is missing in row 27"),
        (lambda f: f.assign(N=[-5.0, *f["N"][1:]]), "N=-5.0 in row 0 is not positive"),
        (lambda f: f.assign(loss=[*f["loss"][:-1], 0.0]), "loss=0.0 in row 27"),
        (lambda f: f.assign(C=["much", *f["C"][1:]]), "C=much in row 0 is not a finite number"),
        (lambda f: f.assign(loss=[np.inf, *f["loss"][1:]]), "loss=inf in row 0"),
        (lambda f: f.assign(status="running"), "nothing left to fit"),
        (lambda f: f.assign(N="1" * 400), f"N={'1' * 40} in row 0 is not a finite number"),
        (lambda f: f.assign(outlier="perhaps"), "outlier=perhaps in row 0"),
        (lambda f: f.head(0), "no rows"),
    ],
)
def test_bad_tables_are_refused_with_the_place(sweep, change, message):
    with pytest.raises(InputError, match=message):
        table_from_frame(change(sweep()))


def test_unreadable_files_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: cannot read"):
        read_table(tmp_path / "none.csv")
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    with pytest.raises(InputError, match=r"empty\.csv: not a CSV table"):
        read_table(empty)
    header = tmp_path / "header.csv"
    header.write_text("N,D,loss\n")
    with pytest.raises(InputError, match=r"header\.csv: the table has no rows"):
        read_table(header)


def test_curves_use_held_out_losses_only(training_curves, tmp_path):
    curves = curves_from_frame(training_curves().sample(frac=1, random_state=0))
    assert len(curves.names) == 28
    assert len(curves.C_P) == 280
    assert curves.loss_P.min() > 1.0  # the training losses were 0.1
    for run in range(28):
        assert (np.diff(curves.C_P[curves.of(run)]) > 0).all()
    path = tmp_path / "curves.csv"
    training_curves().query("split == 'train'").to_csv(path, index=False)
    with pytest.raises(InputError, match="no row with split=validation"):
        read_curves(path)


def test_other_counts_of_n_and_c_are_kept_but_not_pieces_of_n(sweep):
    """A piece of N is no way to count N: an exponent of the embedding's size alone would mean nothing."""
    frame = sweep()
    counts = {
        "N_embedding": 1e3,
        "N_head": 5e2,
        "N_norms": 10.0,
        "N_blocks": frame["N"] - 2e3,
        "C_6nd": frame["C"] * 1.1,
    }
    table = table_from_frame(frame.assign(N_active=frame["N"], **counts))
    assert table.alternatives.keys() == {"N_blocks", "N_without_embedding", "C_6nd"}
    np.testing.assert_array_equal(table.alternatives["N_without_embedding"], frame["N"] - 1e3)
