"""``npdwconv bench``: its JSON, its page and picture, its exit codes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench_tiny import DEPTHWISE, SMALL

from npdwconv import cli
from npdwconv.bench import measure, report, run
from npdwconv.bench.ceilings import Ceilings
from npdwconv.bench.scores import Timings
from npdwconv.errors import OptionError

TESTS = str(Path(__file__).parent)


@pytest.fixture
def few(monkeypatch):
    """A bench of two small cases, and a machine whose limits need no measuring."""
    chosen = [replace(SMALL, source="somewhere"), replace(DEPTHWISE, quick=True)]
    monkeypatch.setattr(run, "cases", lambda: chosen)
    monkeypatch.setattr(run, "_limits", lambda settings, skipped: Ceilings(100.0, {1 << 10: 50.0, 1 << 20: 10.0}))
    monkeypatch.setattr(run, "_peaks", lambda settings, limits: [100.0, 99.0])


@pytest.fixture
def restless(monkeypatch):
    monkeypatch.setattr(run, "_peaks", lambda settings, limits: [100.0, 70.0])


def bench(capsys, *argv):
    code = cli.main(["bench", "--backend", "reference", "--threads", "1", "--rounds", "2", *argv])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_bench_as_json(few, capsys):
    code, out, err = bench(capsys, "--peer", "numpy", "--quick", "--match", "n2-c6", "--json", "--no-compile-times")
    assert (code, out) == (2, "")
    assert err.startswith("npdwconv bench: no case has 'n2-c6' in its name")
    code, out, err = bench(capsys, "--peer", "numpy", "--match", "n2-c6", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {
        "schema", "when", "machine", "settings", "versions", "skipped", "ceilings", "peaks", "families", "properties",
        "cases",
    }  # fmt: skip
    assert (found["schema"], found["skipped"], set(found["versions"])) == (1, {}, {"npdwconv", "numpy"})
    layer, function = found["families"]
    assert layer["name"] == "pointwise-layer"
    assert layer["target"] == {"mean": 1.0, "least": 0.9}
    assert {"title", "cases", "wrong", "mean", "least", "least_case", "met", "first_calls"} < set(function)
    assert all(0 < first[when] < 60 for first in layer["first_calls"] for when in ("cold", "warm"))
    (case,) = found["cases"]
    assert (case["id"], case["faults"]) == ("pointwise_fwd/n2-c6to7-5x4", {})
    assert all(len(rounds) == 2 for rounds in case["seconds"].values())
    assert set(case["scores"][0]) == {
        "family", "ours", "seconds", "fault", "rival", "rival_seconds", "ratio", "gflops", "gbps", "flops_share",
        "bytes_share", "floor_share",
    }  # fmt: skip
    assert set(case["scores"][0]["ratio"]) == {"median", "low", "high"}


def test_bench_as_a_page(few, capsys, tmp_path):
    page, picture = tmp_path / "page.md", tmp_path / "ratios.png"
    page.write_text(f"# Ours\n\n{report.BEGIN}\nold\n{report.END}\n\nkept\n")
    argv = ("--family", "forward-last", "--peer", "numpy", "--no-compile-times", "--markdown", str(page))
    code, out, _ = bench(capsys, *argv, *(("--plot", str(picture)) if find_spec("matplotlib") else ()))
    assert code == 0
    assert "not quiet" not in out
    for words in ("depthwise forward, channels_last", "n2-c3-7x6-k3-s2", "none", "Machine: ", "1 threads each"):
        assert words in out
    assert "channels_first" not in out
    text = page.read_text()
    assert text.startswith(f"# Ours\n\n{report.BEGIN}\n\nMachine: ")
    assert text.endswith(f"{report.END}\n\nkept\n")
    assert "| n2-c3-7x6-k3-s2 |" in text
    assert "old" not in text
    assert not find_spec("matplotlib") or picture.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_result_of_ours_exits_with_1(few, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", TESTS, prepend=os.pathsep)
    monkeypatch.setattr(run, "OWN_MODULE", "bench_fake")
    code, out, _ = bench(capsys, "--family", "pointwise-function", "--peer", "numpy", "--no-compile-times")
    assert code == 1
    assert "no speed" in out


def test_a_machine_that_was_not_quiet_is_said_to_be_so(few, restless, capsys):
    argv = ("--peer", "numpy", "--match", "n2-c3", "--no-compile-times")
    assert "not quiet: the same arithmetic ran at 70 to 100 GFLOP/s" in bench(capsys, *argv)[1]


def test_a_peer_that_is_not_installed_is_skipped_and_said_so(few, capsys, monkeypatch):
    monkeypatch.setattr(measure, "find_spec", lambda name: None)
    code, out, _ = bench(capsys, "--peer", "openvino", "--match", "n2-c3", "--no-compile-times")
    assert code == 0
    assert "Skipped: openvino (not installed: openvino, onnx)." in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--threads", "0"), "threads is 0"),
        (("--rounds", "0"), "rounds is 0"),
        (("--match", "nowhere"), "nowhere"),
        (("--plot", "ratios.jpg"), "PNG"),
        (("--plot", "no/such/folder/ratios.png"), "folder"),
    ],
    ids=" ".join,
)
def test_wrong_calls_measure_nothing(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "run", None)
    code = cli.main(["bench", *argv])
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert words in printed.err


@pytest.mark.parametrize("argv", [("--family", "forwards"), ("--peer", "caffe")], ids=" ".join)
def test_names_that_do_not_exist(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *argv])
    assert stopped.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_a_page_without_markers_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("mine\n")
    with pytest.raises(OptionError, match="needed a file with the lines"):
        report.check(str(page))
    assert page.read_text() == "mine\n"


def test_the_network_by_participant(monkeypatch):
    seconds = {"npdwconv channels_last": [3.0, 5.0, 4.0], "torch NCHW": [9.0], "torch channels_last": [8.0]}
    monkeypatch.setattr(run, "measure", lambda case, field: Timings(case, seconds))
    monkeypatch.setattr(run, "PEERS", {})
    settings = measure.Settings(threads=1, rounds=1, seconds=0.0, warm=0.0)
    assert run.network_seconds(settings) == {"npdwconv": 4.0, "torch": 8.0}
