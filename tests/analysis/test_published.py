"""Published numbers: what a verdict means, every study from its own data, the command, and where data come from."""

import functools
import gzip
import http.server
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from scaling.analysis import golden, sources
from scaling.analysis.fitting import HUBER_LOG, SQUARES_LOG, Objective
from scaling.analysis.golden import LAST_DIGIT, STUDIES, Quantity, verdict
from scaling.analysis.laws import LAWS, Inputs, inputs_of
from scaling.analysis.published import absent, check
from scaling.analysis.studies import OURS, REPEATED, at_parameters
from scaling.analysis.table import table_from_frame
from scaling.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
THEORY = {golden.CZECH.name, golden.PEARCE.name}


@pytest.fixture
def folder(published, tmp_path):
    """A folder with the tables of a study, skipping where they are not there."""

    def hold(study):
        for name in study.files:
            published(name).to_csv(tmp_path / f"{name}.csv", index=False)  # floats are written to their last bit
        return tmp_path

    return hold


@pytest.mark.parametrize(
    ("quantity", "ours", "expected"),
    [
        (Quantity("q", "0.5129"), 0.51294, "reproduced"),
        (Quantity("q", "0.5129"), 0.51296, "FAILED"),
        (Quantity("q", "0.5129", 0.01, "noise"), 0.52, "reproduced"),
        (Quantity("q", "0.020", lowest=True), 0.0203, "reproduced"),
        (Quantity("q", "0.020", lowest=True), 0.017, "better"),
        (Quantity("q", "0.020", lowest=True), 0.021, "FAILED"),
        (Quantity("q", "15.39", instead="95.4", why="a local optimum"), 95.37, "differs"),
        (Quantity("q", "15.39", instead="95.4", why="a local optimum"), 15.388, "reproduced"),
        (Quantity("q", "15.39", instead="95.4", why="a local optimum"), 60.0, "FAILED"),
        (Quantity("q", "0.020", lowest=True), float("nan"), "FAILED"),
        (Quantity("q", "0.020", lowest=True), float("-inf"), "FAILED"),
    ],
)
def test_verdicts(quantity, ours, expected):
    assert verdict(quantity, ours) == expected


def test_every_quantity_is_well_formed():
    """Names are unique, a tolerance of its own has a reason of its own, and another number has a cause."""
    assert len(STUDIES) >= 6
    assert sum(len(study.quantities) for study in STUDIES) == 151  # as docs/analysis.md says
    assert {study.name for study in STUDIES} == OURS.keys()
    for study in STUDIES:
        names = [quantity.name for quantity in study.quantities]
        assert len(set(names)) == len(names)
        for quantity in study.quantities:
            assert np.isfinite(float(quantity.published)), quantity.name
            assert (quantity.tolerance is None) == (quantity.reason == LAST_DIGIT), quantity.name
            assert bool(quantity.instead) == bool(quantity.why), quantity.name
            assert not (quantity.instead and quantity.lowest), quantity.name


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_from_its_own_data(study, folder):
    for row in check(study, folder(study)):
        assert row.verdict != "FAILED", f"{row.quantity.name}: {row.quantity.published}, ours {row.ours}"
        assert (row.verdict == "differs") == bool(row.quantity.instead), row.quantity.name


def test_minima_said_to_be_published_are_those_of_the_published_coefficients(published):
    """Hoffmann et al.'s coefficients as their TeX source has them, and rounded; the grid optimum of datablations."""
    quantities = {(study.name, q.name): float(q.published) for study in STUDIES for q in study.quantities}
    frame = published("chinchilla_epoch245")
    table = table_from_frame(frame[~frame["excluded_by_epoch"]])
    inputs = inputs_of(table, LAWS["chinchilla"])
    E, A, B = np.exp([0.5267228, 6.0073404, 6.0179186])
    for what, parameters in (
        ("there", {"E": E, "A": A, "B": B, "alpha": 0.33917084, "beta": 0.2849083}),
        ("at rounded parameters", {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}),
    ):
        at = at_parameters(LAWS["chinchilla"], parameters, inputs, table.loss_R)
        # Eight digits of the coefficients give six of the objective.
        assert at.value == pytest.approx(quantities[golden.HOFFMANN.name, f"sum of Huber's loss {what}"], rel=1e-6)
    repeated = at_parameters(LAWS["data_constrained"], REPEATED, Inputs(*np.full((4, 1), 1e9)), np.ones(1))
    N = quantities[golden.MUENNIGHOFF.name, "parameters for 1e22 FLOPs, in 1e9"] * 1e9
    given = Inputs(N_R=np.array([N]), D_R=np.array([1e22 / (6 * N)]), U_R=np.array([25e9]))
    least = quantities[golden.MUENNIGHOFF.name, "least loss for 1e22 FLOPs, 25e9 unique tokens"]
    assert repeated.predict(given)[0] == pytest.approx(least, abs=6e-11)


def test_a_law_at_given_parameters_has_the_objective_written_out(sweep, truth):
    frame = sweep(noise=0.01)
    given = Inputs(frame["N"].to_numpy(), frame["D"].to_numpy())
    loss_R = frame["loss"].to_numpy()
    residual_R = np.log(loss_R / truth.loss(given.N_R, given.D_R))
    for objective, rho_R in (
        (HUBER_LOG, np.where(np.abs(residual_R) > 1e-3, 1e-3 * (np.abs(residual_R) - 5e-4), residual_R**2 / 2)),
        (SQUARES_LOG, residual_R**2 / 2),
        (Objective("absolute_log"), np.abs(residual_R)),
    ):
        at = at_parameters(LAWS["chinchilla"], truth._asdict(), given, loss_R, objective)
        assert at.value == pytest.approx(rho_R.sum(), rel=1e-9)
    with pytest.raises(InputError, match="kaplan law under huber_log cannot be put"):
        at_parameters(LAWS["kaplan"], {}, given, loss_R)
    with pytest.raises(InputError, match="squares_raw cannot be put"):
        at_parameters(LAWS["chinchilla"], truth._asdict(), given, loss_R, Objective("squares_raw"))


def test_changed_data_fail(folder):
    """Losses in another unit: of Gadre et al.'s numbers, those in the unit of the loss are others, the rest are not."""
    path = folder(golden.GADRE) / "mlfoundations_overtraining104.csv"
    frame = pd.read_csv(path)
    frame.assign(loss=1.01 * frame["loss"]).to_csv(path, index=False)
    failed = [row.quantity.name for row in check(golden.GADRE, path.parent) if row.verdict == "FAILED"]
    assert failed == ["alpha, five runs", "beta, five runs", "E, five runs"]


def test_what_is_no_table_of_the_study_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no nanochat_param_conventions\.csv, which nanochat needs"):
        check(golden.NANOCHAT, tmp_path)
    assert absent(golden.NANOCHAT, tmp_path) == ["nanochat_param_conventions.csv"]
    (tmp_path / "nanochat_param_conventions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not the tables of nanochat: no column 'convention'"):
        check(golden.NANOCHAT, tmp_path)
    table = "convention,N_opt,D_opt\nall,1e8,1e9\nall,{},1e9\n"
    for content, said in (
        (b"", "not a CSV table"),
        (bytes(range(128, 256)), "not a CSV table"),
        (b"convention,N_opt,D_opt\n", "the table has no rows"),
        (table.format("oops").encode(), "N_opt=oops in row 1 is not a number"),
    ):
        (tmp_path / "nanochat_param_conventions.csv").write_bytes(content)
        with pytest.raises(InputError, match=rf"nanochat_param_conventions\.csv: {said}"):
            check(golden.NANOCHAT, tmp_path)
    (tmp_path / "isoflop_llama_3_raw_loss.csv").write_text("N,D,C,loss,outlier\n1e8,1e9,6e17,-3,False\n")
    with pytest.raises(InputError, match=r"isoflop_llama_3_raw_loss\.csv: loss=-3 in row 0 is not positive"):
        check(golden.LLAMA, tmp_path)


# The command


def command(*arguments: str, data: str = "") -> tuple[int, str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SCALING_PUBLISHED_DATA": data}
    asked = [sys.executable, "-m", "tools.published", *arguments]
    done = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_command_prints_what_it_can_check_and_says_what_it_cannot(tmp_path):
    """Two studies are theory. A table of nanochat that is wrong fails, and the command ends with 3."""
    code, output, _ = command(data=str(tmp_path))
    assert code == 0
    lines = output.splitlines()
    assert lines[0].split() == ["study", "quantity", "published", "ours", "+-", "verdict"]
    assert "36 quantities of 2 studies: 36 reproduced, 0 better, 0 differs, 0 FAILED" in lines[-1]
    unchecked = [line.split(": ")[1].split(", no ")[0] for line in lines if line.startswith("not checked")]
    assert set(unchecked) == {study.name for study in STUDIES} - THEORY
    rows = [(name, 1e8 * k, 1e9) for name in ("kaplan", "all", "transformer_only") for k in (1, 2, 3, 4)]
    wrong = pd.DataFrame(rows, columns=["convention", "N_opt", "D_opt"])
    wrong.to_csv(tmp_path / "nanochat_param_conventions.csv", index=False)
    code, output, _ = command(f"--data={tmp_path}")
    assert code == 3
    assert "0 differs, 6 FAILED" in output.splitlines()[-1]


def test_the_command_without_data_ends_with_2_and_one_line(tmp_path):
    for arguments, said in (((), "no folder of published data"), ((f"--data={tmp_path}/x",), "no such folder")):
        code, output, errors = command(*arguments)
        assert (code, output) == (2, "")
        assert said in errors
        assert "SCALING_PUBLISHED_DATA" in errors
        assert len(errors.splitlines()) == 1


def test_the_command_downloads_what_is_missing_once(tmp_path):
    """With a source on this machine in place of the public ones."""
    (tmp_path / "log.csv").write_text("convention,N_opt,D_opt\n" + "all,1,1\nkaplan,1,1\ntransformer_only,1,1\n" * 4)
    script = f"""
import io, runpy, sys
import pandas as pd
from scaling.analysis import sources
read = lambda content: pd.read_csv(io.BytesIO(content))
same = sources.fingerprint(pd.read_csv("{tmp_path}/log.csv"))
sources.SOURCES = (sources.Source("nanochat_param_conventions", "file://{tmp_path}/log.csv", read, same),)
sys.argv = ["published", "--download", "--data={tmp_path}/data"]
runpy.run_module("tools.published", run_name="__main__", alter_sys=True)
"""
    said = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr  # these numbers are nobody's
        said.append("downloaded" in done.stdout)
    assert said == [True, False]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["nanochat_param_conventions.csv"]


# Sources


def raw(name: str, frame: pd.DataFrame) -> bytes:
    """A table as the file that it is rebuilt from would hold it, with rows that are not part of it."""
    if name == "chinchilla_epoch245":
        return frame[["N", "C", "loss"]].assign(color="#faebdd").to_csv(index=False).encode()
    if name == "isoflop_llama_3_raw_loss":
        given = frame.rename(columns={"N": "params", "D": "tokens", "C": "budget"}).assign(
            experiment="llama_3__raw_loss"
        )
        other = given.head(3).assign(experiment="llama_3__exp_loss")
        return pd.concat([other, given]).to_csv(index=False).encode()
    if name == "moe_routing_final223":
        names = {"N": "dense_parameter_count", "C": "flops_per_step", "loss": "loss_validation"}
        last = frame.rename(columns=names).assign(hyper_id=np.arange(len(frame)), step=249000)
        early = last.assign(step=10000, loss_validation=5.0)
        return gzip.compress(pd.concat([last, early]).to_csv(index=False).encode())
    named = {"N": "params_active_precise", "D": "tokens", "loss": "final_loss", "run": "run_name"}
    # As text: pandas writes JSON to fifteen digits, these files have all seventeen.
    return "\n".join(row.to_json(double_precision=15) for _, row in frame.rename(columns=named).iterrows()).encode()


@pytest.mark.parametrize("source", sources.SOURCES, ids=lambda source: source.name)
def test_a_table_is_rebuilt_from_a_file_like_its_source(source, published, tmp_path):
    """The values that are there are those whose hash is written down."""
    frame = published(source.name)
    (tmp_path / "raw").write_bytes(raw(source.name, frame))
    local = sources.Source(source.name, (tmp_path / "raw").as_uri(), source.rebuild, source.sha256)
    found = pd.read_csv(sources.fetch(local, tmp_path / "data"))
    assert len(found) == len(frame)
    order = ["N", "C", "loss"]
    mine, theirs = (part.sort_values(order).reset_index(drop=True)[found.columns] for part in (found, frame))
    pd.testing.assert_frame_equal(mine, theirs, check_dtype=False, rtol=1e-12)


@pytest.fixture
def server(tmp_path):
    """The address of a folder served on the loopback interface."""
    (tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", tmp_path / "served"
        httpd.shutdown()


def test_a_download_is_checked_before_it_is_kept(server, tmp_path):
    address, served = server
    frame = pd.DataFrame({"N": [1e6, 2e6], "loss": [3.0, 2.5]})
    (served / "runs.csv").write_text(frame.to_csv(index=False))
    good = sources.Source("runs", f"{address}/runs.csv", lambda content: frame, sources.fingerprint(frame))
    path = sources.fetch(good, tmp_path / "data")
    pd.testing.assert_frame_equal(pd.read_csv(path), frame)
    for source, said in (
        (sources.Source("b", f"{address}/runs.csv", lambda content: frame * 1.001, good.sha256), "not those of b"),
        (sources.Source("c", f"{address}/none.csv", good.rebuild, good.sha256), "cannot be downloaded"),
        (sources.Source("d", f"{address}/runs.csv", sources.SOURCES[0].rebuild, good.sha256), "'C'"),
        (sources.Source("e", f"{address}/runs.csv", sources.SOURCES[2].rebuild, good.sha256), "is not the file"),
    ):
        with pytest.raises(InputError, match=said):
            sources.fetch(source, tmp_path / "data")
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["runs.csv"]


def test_a_fingerprint_sees_values_order_and_names():
    frame = pd.DataFrame({"N": [1e6, 2e6], "run": ["a", "b"], "outlier": [True, False]})
    same = sources.fingerprint(frame)
    assert sources.fingerprint(frame[["outlier", "N", "run"]]) == same
    assert sources.fingerprint(frame.astype({"N": int})) == same
    for other in (frame[::-1], frame.assign(N=[1e6, 2e6 + 1]), frame.rename(columns={"run": "name"}), frame.head(1)):
        assert sources.fingerprint(other) != same
