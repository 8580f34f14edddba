"""The bench's processes: what they answer, how they end, and what is timed of what they offer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bench_tiny import SETTINGS, SMALL, TINY

from npdwconv.bench import measure
from npdwconv.bench.cases import Case
from npdwconv.bench.families import contests
from npdwconv.bench.measure import PEERS, Field
from npdwconv.bench.operands import operands, truth
from npdwconv.bench.processes import Worker, WorkerError

TESTS = str(Path(__file__).parent)
tiny = pytest.mark.parametrize("case", TINY, ids=lambda case: case.id)


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", TESTS, prepend=os.pathsep)


def fake(**settings):
    return Worker("bench_fake", 2, **settings)


def test_a_participant_answers_whatever_it_prints(fakes):
    with fake() as worker:
        assert worker.hello() == "1.0 with 2"
        built = worker.open(SMALL)
        assert built["cannot be built"].startswith("ValueError: invalid literal")
        assert truth(SMALL, operands(SMALL)).fault(worker.result("layer channels_first")) is None
        assert 0.05 <= worker.burst("sleeps", 0.01, 0.0) < 1.0
        with pytest.raises(WorkerError, match="ValueError: invalid literal"):
            worker.result("raises")
        assert worker.alive


def test_a_process_that_ends_says_so(fakes):
    with fake(environment={"BENCH_FAKE_DIES": "1"}) as worker:
        worker.open(SMALL)
        with pytest.raises(WorkerError, match="its process ended with code 3"):
            worker.result("dies")
        with pytest.raises(WorkerError, match="code 3"):
            worker.hello()


def test_a_participant_that_cannot_be_imported_says_why():
    with Worker("no_such_module", 1) as worker, pytest.raises(WorkerError, match="No module named"):
        worker.hello()


def test_an_answer_is_not_waited_for_for_ever(fakes):
    with fake() as worker:
        worker.open(SMALL)
        worker.patience = 0.5
        with pytest.raises(WorkerError, match="its process ended"):
            worker.burst("sleeps", 60.0, 0.0)


def ended(pid, patience=10.0):
    """Whether a process is gone, or is dead and only not yet waited for by whoever inherited it."""
    status = Path(f"/proc/{pid}/stat")
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc on this system")

PARENT = """
import sys, time
from npdwconv.bench.processes import Worker
worker = Worker("bench_fake", 1)
worker.hello()
print(worker.pid, flush=True)
time.sleep(60)
"""


@needs_proc
def test_a_process_whose_parent_is_killed_ends(fakes):
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    assert ended(pid)


@needs_proc
def test_an_error_ends_every_process(fakes):
    field = Field({"npdwconv": "bench_fake", "torch": "bench_fake"}, SETTINGS)
    pids = []

    def interrupted():
        with field:
            pids.extend(worker.pid for _, worker in field.workers())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(pids) == 2
    assert all(ended(pid, 1.0) for pid in pids)


@needs_proc
def test_ctrl_c_ends_every_process():
    command = [sys.executable, "-m", "npdwconv", "bench", "--backend", "reference", "--match", "c128to128", "--quick"]
    command += ["--family", "separable", "--peer", "numpy", "--rounds", "10000", "--threads", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=_minds_ctrl_c)
    with started as parent:
        try:
            children = wait_for_children(parent.pid, 2)
            os.killpg(parent.pid, signal.SIGINT)
            _, err = parent.communicate(timeout=30)
        finally:
            parent.kill()
        assert (parent.returncode, err) == (130, b"")
    assert all(map(ended, children))


def _minds_ctrl_c():
    """As a program does that was started in a terminal: a shell's background jobs, and what they start, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_children(pid, count, patience=60.0):
    """The first ``count`` children that a process has at one time, each given time to begin."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if len(found) >= count:
            time.sleep(2.0)
            return [int(child) for child in found]
        time.sleep(0.05)
    raise AssertionError(f"no {count} children within {patience} s")


# measuring


def test_only_right_ways_are_timed(fakes):
    modules = {"npdwconv": "bench_fake", "torch": "bench_fake"}
    with Field(modules, SETTINGS) as field:
        found = measure.measure(SMALL, field)
    assert set(found.seconds) == {
        "npdwconv layer channels_first",
        "torch layer channels_first",
        "torch sleeps",
    }
    assert len(found.seconds["npdwconv layer channels_first"]) == 2
    assert len(found.seconds["torch sleeps"]) == 1  # hopeless after the first round
    assert "outside their bound" in found.faults["torch wrong"]
    assert "it is nan" in found.faults["torch a nan"]
    assert "ValueError" in found.faults["torch raises"]


def test_a_peer_that_dies_is_started_again(fakes, monkeypatch):
    monkeypatch.setenv("BENCH_FAKE_DIES", "1")
    with Field({"torch": "bench_fake"}, SETTINGS) as field:
        first, second = (measure.measure(SMALL, field) for _ in range(2))
    assert "code 3" in first.faults["torch dies"]
    assert second.faults.keys() == first.faults.keys()


def test_what_does_not_start_is_reported(fakes):
    with Field({"torch": "no_such_module"}, SETTINGS) as field:
        found = measure.measure(SMALL, field)
        assert list(field.workers()) == []
    assert (found.seconds, found.faults) == ({}, {})
    assert "No module named" in field.lost["torch"]


@pytest.mark.peers
@pytest.mark.parametrize("peer", PEERS)
def test_peers_are_right(peer):
    if PEERS[peer].missing():
        pytest.skip(reason=f"not installed: {PEERS[peer].missing()}")
    with Field({peer: PEERS[peer].module}, replace(SETTINGS, rounds=1)) as field:
        for case in [*TINY, Case("network_fwd", 1, 3, (224, 224))]:
            found = measure.measure(case, field)
            assert found.faults == {}, case.id
    assert field.lost == {}


@tiny
def test_our_own_ways_are_right_on_the_reference(case, own_field):
    found = measure.measure(case, own_field)
    assert found.faults == {}
    assert set(found.seconds) == {f"npdwconv {contest.ours}" for contest in contests(case)}


@pytest.fixture(scope="module")
def own_field():
    with Field({"npdwconv": measure.OWN_MODULE}, replace(SETTINGS, rounds=1)) as field:
        yield field
