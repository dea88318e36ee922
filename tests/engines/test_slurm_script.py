"""What is submitted to SLURM, what a job does when its cell ends, and what the launcher makes of it: SLURM is made up
here, by commands of its names that write down how they were called. test_slurm.py has the real one."""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from scaling.errors import NEVER, SOON, InputError
from scaling.files import read_json, write_json
from scaling.sweeps import on_slurm
from scaling.sweeps.on_slurm import Watched, check, job_script, run_slurm, sbatch_command
from scaling.sweeps.slurm_commands import STOP, ask, parse_queue
from scaling.sweeps.slurm_job import is_again, runs_of, step_command
from scaling.sweeps.tasks import ROOT, Task, Way, cell_command
from scaling.training.failures import Failure

ODD = "it's a $(touch pwned) `dir` %j; 100%"  # a name that a careless script would run
NAMES = ("sbatch", "squeue", "scancel", "scontrol", "srun")
HUNG = Failure("hung", "no step in 1800 s")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The commands of SLURM as made up: each writes its arguments to `calls`, a line a call, and does what its NAME.sh
    says. SLURM's own is that of no command."""
    folder = tmp_path / "slurm-made-up"
    folder.mkdir()
    for name in NAMES:
        script = f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> "{folder}/calls"\n. "{folder}/{name}.sh"\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
        (folder / f"{name}.sh").write_text("")
    (folder / "srun.sh").write_text('shift 2\n"$@"\n')
    (folder / "scontrol.sh").write_text('echo "MaxArraySize            = 1001"\n')
    (folder / "sbatch.sh").write_text("echo '17;cluster'\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def calls(slurm, name):
    """How a command was called, a line a call."""
    lines = (slurm / "calls").read_text().splitlines() if (slurm / "calls").exists() else []
    return [line for line in lines if line.split()[0] == name]


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / ODD


def task(workdir, run="a", processes=1):
    return Task(run, workdir / "runs" / run, 1e9, 100, processes)


def result(run):
    """As much of one as makes it one."""
    return {"run": run, "loss": 2.0}


# What is submitted


def test_script_survives_odd_paths(workdir):
    """As a shell reads it: the words that were meant, and nothing that runs."""
    text = job_script(workdir, workdir / "slurm" / "n", task(workdir), Way(retries=5))
    first, line = text.splitlines()
    words = shlex.split(line)
    assert first == "#!/bin/sh"
    assert words[:4] == ["exec", sys.executable, "-m", "scaling.sweeps.slurm_job"]
    assert words[4:7] == [f"--folder={workdir}/slurm/n", "--retries=5", "--processes=1"]
    assert words[7] == "--"
    assert [*words[8:], "--cell=a"] == sorted(cell_command(workdir, "a", Way()), key=lambda word: "--cell" in word)


def test_options_of_sbatch_are_taken_as_they_are_and_last(workdir):
    way = Way(workers=3, sbatch=("partition=gpu", "time=24:00:00", "exclusive"))
    command = sbatch_command(workdir / "slurm" / "n", 10, 2, way)
    assert {"--array=0-9%3", "--ntasks=2", "--requeue", "--signal=B:TERM@120", "--job-name=n"} < set(command)
    assert command[-4:] == ["--partition=gpu", "--time=24:00:00", "--exclusive", f"{workdir}/slurm/n/job.sh"]
    assert "--array=0-9" in sbatch_command(workdir / "n", 10, 1, Way())
    (output,) = [part for part in command if part.startswith("--output=")]
    assert output == f"--output={str(workdir).replace('%', '%%')}/slurm/n/%a.log"


@pytest.mark.parametrize("option", ["array=0-5", "job-name=mine", "output=log"])
def test_options_that_the_launcher_sets_are_refused(workdir, option):
    with pytest.raises(InputError, match="the launcher sets"):
        sbatch_command(workdir, 1, 1, Way(sbatch=(option,)))


def test_a_cell_of_several_processes_connects_them():
    assert shlex.join(step_command(["cell"], "a", 1)) == "srun --ntasks=1 --kill-on-bad-exit=1 cell --cell=a"
    assert shlex.join(step_command(["cell"], "a", 2)).endswith(
        "ntasks=2 --kill-on-bad-exit=1 cell --cell=a --distributed"
    )


# What a job does when its cell ends


def job(slurm, workdir, cell, retries=3, state="RUNNING", **extra):
    """Runs the job of the second cell of an array, of which SLURM says that it is in a state: its exit code."""
    folder = workdir / "slurm" / "n"
    (slurm / "squeue.sh").write_text(f"echo {state}\n")
    if not folder.exists():
        write_json(folder / "submission.json", {"runs": ["a", "b"]})
        (workdir / "runs" / "b").mkdir(parents=True)
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "17", **extra}
    flags = [f"--folder={folder}", f"--retries={retries}", "--processes=1"]
    line = [sys.executable, "-m", "scaling.sweeps.slurm_job", *flags, "--", "sh", "-c", cell]
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def code_of(process):
    process.communicate(timeout=60)
    return process.returncode


def leaves(workdir, name, values):
    """A shell command that leaves a JSON file in the run's directory."""
    write_json(workdir.parent / f"{name}.made", values)
    return f"cp {shlex.quote(str(workdir.parent / name))}.made {shlex.quote(str(workdir / 'runs' / 'b' / name))}"


def test_a_job_whose_cell_is_done_ends_well(slurm, workdir):
    assert code_of(job(slurm, workdir, leaves(workdir, "result.json", result("b")))) == 0
    (step,) = calls(slurm, "srun")
    assert step.startswith("srun --ntasks=1 --kill-on-bad-exit=1 sh -c")
    assert step.endswith("--cell=b")
    assert not calls(slurm, "scontrol")


def test_failures_use_up_the_tries_and_are_told(slurm, workdir):
    """Requeued by array and index: the last task of an array has the array's number as its job id."""
    cell = leaves(workdir, "failure.json", HUNG.to_json()) + "; exit 124"
    codes = [code_of(job(slurm, workdir, cell, retries=2)) for _ in range(3)]
    assert codes == [75, 75, 3]
    assert calls(slurm, "scontrol") == ["scontrol requeue 17_1"] * 2
    assert (workdir / "slurm" / "n" / "1.tries").read_text() == f"hung: {HUNG.reason}\n" * 3


def test_a_process_killed_without_a_word_is_recorded_and_tried_again(slurm, workdir):
    assert code_of(job(slurm, workdir, "exit 137")) == 75
    assert read_json(workdir / "runs" / "b" / "failure.json")["kind"] == "killed"
    assert calls(slurm, "scontrol") == ["scontrol requeue 17_1"]


def test_what_would_fail_again_is_not_tried_again(slurm, workdir):
    cell = leaves(workdir, "failure.json", Failure("diverged", "loss 99").to_json()) + "; exit 3"
    assert code_of(job(slurm, workdir, cell)) == 3
    assert not calls(slurm, "scontrol")


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING", ""])
def test_a_job_that_slurm_is_ending_is_left_to_it(slurm, workdir, state):
    """A cancelled job would come back; one that is pre-empted has been requeued by SLURM."""
    code_of(job(slurm, workdir, "exit 137", state=state))
    assert not calls(slurm, "scontrol")


def test_a_stop_is_passed_on_to_the_step_and_uses_up_no_try(slurm, workdir):
    """srun kills its step when it is signalled itself."""
    (slurm / "scancel.sh").write_text(f'touch "{slurm}/asked"\n')
    waits = f"while ! [ -e '{slurm}/asked' ]; do sleep 0.1; done; exit 75"
    process = job(slurm, workdir, waits, retries=0)
    while not calls(slurm, "srun"):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert code_of(process) == 75
    assert calls(slurm, "scancel")[0] == "scancel --signal=TERM 17_1"
    assert calls(slurm, "scontrol") == ["scontrol requeue 17_1"]
    assert not (workdir / "slurm" / "n" / "1.tries").exists()


def test_nothing_of_a_stopped_submission_starts(slurm, workdir):
    write_json(workdir / "slurm" / "n" / "submission.json", {"runs": ["a", "b"]})
    (workdir / "slurm" / "n" / STOP).touch()
    assert code_of(job(slurm, workdir, "exit 0")) == 75
    assert not calls(slurm, "srun")


@pytest.mark.parametrize("values", [[], {"runs": "a"}, {"runs": ["../../etc"]}, {"runs": [7]}, {}])
def test_a_submission_that_was_tampered_with_is_refused(tmp_path, values):
    write_json(tmp_path / "submission.json", values)
    with pytest.raises(InputError, match=r"submission\.json"):
        runs_of(tmp_path)


def test_tries_are_for_failures_alone(tmp_path):
    tries = tmp_path / "tries"
    assert all(is_again({"event": "stopped"}, tries, 0) for _ in range(5))
    soon = {"event": "failed", "kind": "killed", "reason": "two\nlines", "retry": SOON}
    assert [is_again(soon, tries, 2) for _ in range(3)] == [True, True, False]
    assert not is_again({**soon, "retry": NEVER}, tmp_path / "other", 2)
    assert tries.read_text() == "killed: two lines\n" * 3
    assert not is_again({"event": "done"}, tries, 2)


# What the launcher makes of it


def test_squeue_is_read():
    text = "scaling-1|0|RUNNING|None\nscaling-1|12|PENDING|Nodes required | are DOWN"
    assert parse_queue(text) == {
        ("scaling-1", 0): ("RUNNING", "None"),
        ("scaling-1", 12): ("PENDING", "Nodes required | are DOWN"),
    }
    assert parse_queue("") == {}


def test_asked_again_when_the_controller_is_busy(slurm):
    (slurm / "squeue.sh").write_text(
        f'[ -e "{slurm}/second" ] && echo fine && exit 0\ntouch "{slurm}/second"\nexit 1\n'
    )
    assert ask("squeue", patience=2) == "fine"
    (slurm / "squeue.sh").write_text("echo 'Socket timed out' >&2\nexit 1\n")
    with pytest.raises(InputError, match="squeue: Socket timed out"):
        ask("squeue", patience=1)


def test_a_machine_without_slurm_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"sbatch is not in PATH .*--launcher=local"):
        check()


def test_a_controller_that_does_not_answer_is_told(slurm):
    check()
    (slurm / "scontrol.sh").write_text("echo 'Unable to contact slurm controller' >&2\nexit 1\n")
    with pytest.raises(InputError, match="Unable to contact slurm controller"):
        check()


@pytest.fixture
def quick(monkeypatch):
    """Polls and waits that a test has time for."""
    monkeypatch.setattr(on_slurm, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(on_slurm, "FILES_SECONDS", 0.0)


def events_of(workdir, tasks, way=None):
    events = []
    complete = run_slurm(workdir, tasks, way or Way(), lambda index, event: events.append((index, event)))
    return complete, events


def test_one_array_for_each_number_of_processes(slurm, workdir, quick):
    tasks = [task(workdir, "a"), task(workdir, "b", 4), task(workdir, "c")]
    for each in tasks:
        write_json(each.directory / "result.json", result(each.run))
    complete, events = events_of(workdir, tasks)
    assert complete
    assert sorted(index for index, event in events if event == {"event": "done"}) == [0, 1, 2]
    one, four = calls(slurm, "sbatch")
    assert "--array=0-1 --ntasks=1" in one
    assert "--array=0-0 --ntasks=4" in four
    runs = [read_json(path)["runs"] for path in workdir.glob("slurm/*/submission.json")]
    assert sorted(runs) == [["a", "c"], ["b"]]


def test_more_cells_than_an_array_may_have_wait_for_each_other(slurm, workdir, quick):
    (slurm / "scontrol.sh").write_text("echo 'MaxArraySize = 2'\n")
    tasks = [task(workdir, run) for run in "abc"]
    for each in tasks:
        write_json(each.directory / "result.json", result(each.run))
    assert events_of(workdir, tasks)[0]
    first, second = calls(slurm, "sbatch")
    assert "--array=0-1" in first
    assert "dependency" not in first
    assert "--array=0-0" in second
    assert "--dependency=afterany:17" in second


def forked(workdir):
    """Two trunks, and a fork of each that has not been handed over yet."""
    trunks = [task(workdir, "a"), task(workdir, "b", processes=2)]
    forks = [task(workdir, "c"), task(workdir, "d", processes=2)]
    return [*trunks, *(dataclasses.replace(f, after=t.run, first=80) for f, t in zip(forks, trunks, strict=True))]


def test_forks_are_started_once_all_trunks_have_ended(slurm, workdir):
    """However they did: an array for each number of processes, after the arrays of the trunks."""
    (slurm / "sbatch.sh").write_text(f'wc -l < "{slurm}/calls"\n')  # job numbers 1, 2, ... of the calls
    tasks = forked(workdir)
    for each in tasks:
        (workdir / "runs" / each.run).mkdir(parents=True)
    watched = on_slurm._submit_all(workdir, tasks, {}, Way())
    assert sorted(watched) == [0, 1, 2, 3]
    submitted = calls(slurm, "sbatch")
    numbers = [(slurm / "calls").read_text().splitlines().index(line) + 1 for line in submitted]
    assert ["--dependency" in line for line in submitted] == [False, False, True, True]
    after = f"--dependency=afterany:{numbers[0]}:{numbers[1]} "
    assert all(after in line for line in submitted[2:])
    assert ["--ntasks=1" in line for line in submitted] == [True, False, True, False]


def test_forks_wait_for_trunks_that_an_earlier_launcher_submitted(slurm, workdir):
    tasks = forked(workdir)[::2]
    folder = workdir / "slurm" / "scaling-before"
    write_json(folder / "submission.json", {"runs": ["a"]})
    (slurm / "squeue.sh").write_text("echo 41; echo 41\n")
    watched = on_slurm._submit_all(workdir, tasks, {0: Watched(tasks[0], folder, 0)}, Way())
    assert list(watched) == [1]
    (submitted,) = calls(slurm, "sbatch")
    assert "--dependency=afterany:41 " in submitted
    (asked,) = calls(slurm, "squeue")
    assert asked == "squeue -h --name=scaling-before -o %F"


def test_forks_wait_for_what_they_are_told_to_besides(slurm, workdir):
    """SLURM takes the last of two options, and would start them beside their trunks."""
    on_slurm._submit_all(workdir, forked(workdir)[::2], {}, Way(sbatch=("dependency=afterok:5", "qos=low")))
    trunks, forks = [line.split() for line in calls(slurm, "sbatch")]
    last = [[part for part in line if part.startswith("--dependency")][-1] for line in (trunks, forks)]
    assert last == ["--dependency=afterok:5", "--dependency=afterany:17,afterok:5"]


def test_a_fork_that_was_handed_over_waits_for_nobody(slurm, workdir):
    tasks = forked(workdir)[::2]
    (workdir / "runs" / "c" / "checkpoints" / "80-1").mkdir(parents=True)
    on_slurm._submit_all(workdir, tasks, {}, Way())
    (submitted,) = calls(slurm, "sbatch")
    assert "dependency" not in submitted


def test_what_an_earlier_launcher_has_submitted_is_followed(slurm, workdir, quick):
    """Of its two cells one is still queued: the other alone is submitted."""
    write_json(workdir / "slurm" / "scaling-1" / "submission.json", {"runs": ["a", "b"]})
    (slurm / "squeue.sh").write_text("echo 'scaling-1|1|RUNNING|None'\n")
    tasks = [task(workdir, "a"), task(workdir, "b")]
    for each in tasks:
        write_json(each.directory / "result.json", result(each.run))
    assert events_of(workdir, tasks)[0]
    (submitted,) = calls(slurm, "sbatch")
    assert "--array=0-0" in submitted
    assert sorted(read_json(path)["runs"] for path in workdir.glob("slurm/*/submission.json")) == [["a"], ["a", "b"]]


def test_a_submission_that_was_stopped_is_not_followed(slurm, workdir, quick):
    write_json(workdir / "slurm" / "scaling-1" / "submission.json", {"runs": ["a"]})
    (workdir / "slurm" / "scaling-1" / STOP).touch()
    (slurm / "squeue.sh").write_text("echo 'scaling-1|0|PENDING|BeginTime'\n")
    write_json(task(workdir).directory / "result.json", result("a"))
    assert events_of(workdir, [task(workdir)])[0]
    assert len(calls(slurm, "sbatch")) == 1


def test_a_job_that_vanished_without_a_word_fails_its_cell(slurm, workdir, quick):
    task(workdir).directory.mkdir(parents=True)
    complete, ((index, event),) = events_of(workdir, [task(workdir)])
    assert complete
    assert (index, event["event"], event["kind"], event["retry"]) == (0, "failed", "killed", SOON)
    assert "0.log" in event["reason"]


def test_a_refused_submission_says_what_slurm_says(slurm, workdir):
    (slurm / "sbatch.sh").write_text("echo 'invalid partition specified: gpu' >&2\nexit 1\n")
    with pytest.raises(InputError, match="sbatch: invalid partition specified: gpu"):
        events_of(workdir, [task(workdir)])


@pytest.fixture
def watched(workdir):
    task(workdir).directory.mkdir(parents=True)
    folder = workdir / "slurm" / "n"
    folder.mkdir(parents=True)
    return Watched(task(workdir), folder, 0)


def fail(watched, failure):
    """As a job does."""
    write_json(watched.task.directory / "failure.json", failure.to_json())
    with open(watched.tries, "a") as f:
        f.write("a failure\n")


def test_a_failure_is_told_once_and_again_while_it_may_help(watched):
    way = Way(retries=1)
    look = on_slurm._look
    assert look(watched, "RUNNING", "None", way) == {"event": "progress", "done": 0, "steps": 100}
    fail(watched, HUNG)
    again = {"event": "again", "kind": "hung", "reason": HUNG.reason, "tries": 1}
    assert look(watched, "PENDING", "BeginTime", way) == again
    assert look(watched, "PENDING", "BeginTime", way) is None
    assert look(watched, "RUNNING", "None", way)["event"] == "progress"
    fail(watched, dataclasses.replace(HUNG, attempt=2))
    assert look(watched, "COMPLETING", "None", way)["event"] == "progress"  # not known yet to be the end
    event = look(watched, "", "", way)
    assert (event["event"], event["kind"], event["retry"]) == ("failed", "hung", SOON)


def test_an_old_failure_is_not_taken_for_that_of_a_job_that_vanished(watched, monkeypatch):
    write_json(watched.task.directory / "failure.json", HUNG.to_json())
    assert on_slurm._look(watched, "", "", Way()) is None  # what it wrote may not be seen here yet
    monkeypatch.setattr(on_slurm, "FILES_SECONDS", 0.0)
    event = on_slurm._look(watched, "", "", Way())
    assert (event["event"], event["kind"]) == ("failed", "killed")


def test_a_result_counts_once_its_job_has_ended(watched):
    """Until then the job may still be at its files. One that waits would find nothing left to do."""
    fail(watched, HUNG)
    write_json(watched.task.directory / "result.json", result("a"))
    assert on_slurm._look(watched, "RUNNING", "", Way())["event"] != "done"
    for state in ("COMPLETING", "PENDING", ""):
        assert on_slurm._look(watched, state, "", Way()) == {"event": "done"}


@pytest.mark.parametrize("reason", ["JobHeldUser", "launch failed requeued held", "JobHoldMaxRequeue"])
def test_a_held_job_is_told_and_not_waited_for(watched, reason):
    watched.state = "PENDING"
    event = on_slurm._look(watched, "PENDING", reason, Way())
    assert event["event"] == "failed"
    assert reason in event["reason"]
    assert "scontrol release" in event["reason"]
