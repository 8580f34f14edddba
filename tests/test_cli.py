"""The command line: exit codes, JSON, messages, and the main job's known answers."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

import npdwconv
from npdwconv import cli, console, demo, info

needs_demo = pytest.mark.skipif(
    any(demo.find_spec(name) is None for name in demo.EXTRA), reason="the extra demo is not installed"
)


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_module_and_script_are_one():
    found = subprocess.run([sys.executable, "-m", "npdwconv", "--version"], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout.split()[0]) == (0, "npdwconv")


@pytest.mark.parametrize("argv", [(), ("nonsense",), ("cost", "standard"), ("info", "--jsn")], ids=" ".join)
def test_a_wrong_call_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert "usage: npdwconv" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "cost", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert "--json" in capsys.readouterr().out


COST = ("cost", "separable", "--in-channels", "32", "--out-channels", "64", "--kernel", "3", "--input", "112x112")


def test_cost_as_json(capsys):
    code, out, err = run(capsys, *COST, "--padding", "same", "--no-bias", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["parameters"], found["standard"]["parameters"]) == (2336, 18432)
    assert found["share_of_standard"]["multiply_adds"] == pytest.approx(1 / 64 + 1 / 9)
    assert found["output_size"] == [112, 112]


def test_cost_as_a_table(capsys):
    code, out, _ = run(capsys, *COST)
    assert code == 0
    assert "2400" in out
    assert "share of standard" in out


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1", 1), ("1x2", (1, 2)), ("0:1x2", ((0, 1), 2)), ("same", "same"), ("0:3", ((0, 3),))],
)
def test_paddings_on_the_command_line(text, wanted):
    assert cli.padding(text) == wanted


def test_an_impossible_convolution_exits_with_2_and_a_line(capsys):
    code, out, err = run(capsys, "cost", "depthwise", "--in-channels", "3", "--kernel", "9", "--input", "4x4")
    assert (code, out) == (2, "")
    assert err.startswith("npdwconv cost: a kernel of extent 9")
    assert err.count("\n") == 1


def test_info_says_what_is_there_and_why_not(capsys):
    code, out, _ = run(capsys, "info", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["versions"]["npdwconv"] == npdwconv.__version__
    assert found["backends"]["reference"] == {"available": True, "reason": None}
    for state in found["backends"].values():
        assert state["available"] == (state["reason"] is None)
    assert found["threads"] == npdwconv.get_num_threads()
    assert {"cpu", "cache_folders", "platform"} <= set(found)
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert "backend cuda" in out


@pytest.mark.parametrize(
    ("features", "bits"),
    [({"avx512f": True, "avx2": True}, 512), ({"avx": True}, 256), ({"neon": True}, 128), ({}, None)],
)
def test_simd_width(features, bits):
    assert info.simd_bits(features) == bits


def test_a_table_without_rich_is_aligned():
    text = console.plain_table("t", ["name", ">n"], [["a", "1"], ["bb", "22"]])
    assert text.splitlines() == ["t", "name   n", "----  --", "a      1", "bb    22"]


@pytest.mark.parametrize("draw", ["rich_table", "plain_table"])
@pytest.mark.parametrize(("width", "kept"), [(None, 3), (22, 3), (21, 2), (5, 2)])
def test_a_narrow_terminal_leaves_out_columns_but_cuts_no_cell(draw, width, kept, monkeypatch):
    if draw == "rich_table":
        pytest.importorskip("rich", reason="the extra demo is not installed")
    monkeypatch.setattr(console, "_terminal_width", lambda: width)
    monkeypatch.setattr(console.importlib.util, "find_spec", lambda name: draw == "rich_table" or None)
    text = console.table("t", ["stage", "?>backward", ">ms"], [["blocks.1", "1.5", "22"]], totals=[["all", "7", "8"]])
    cells = ["blocks.1", "1.5", "22"] if kept == 3 else ["blocks.1", "22"]
    assert cells in [line.split() for line in text.splitlines()]
    assert ("backward" in text) == (kept == 3)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_closed_pipe_leaves_no_traceback():
    command = [sys.executable, "-m", "npdwconv", "cost", "standard", "--in-channels", "1", "--out-channels", "1"]
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [*command, "--kernel", "1", "--input", "1"], stdout=writer, stderr=-1, timeout=60, check=False
    )
    os.close(writer)
    assert (found.returncode, found.stderr) == (141, b"")


def test_a_missing_extra_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    code, out, err = run(capsys, "demo")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install 'npdwconv[demo]'" in err


def test_ctrl_c_exits_with_130(monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "collect", interrupted)
    assert cli.main(["info"]) == 130


@needs_demo
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        pytest.param((), {285: 0.38, 282: 0.33, 281: 0.16}, id="cat"),
        pytest.param(("--layout", "channels_first"), {285: 0.38, 282: 0.33, 281: 0.16}, id="cat-channels_first"),
        pytest.param(("--image", "coffee.png", "--top", "1"), {967: 0.94}, id="coffee"),
    ],
)
def test_demo(options, wanted, capsys, tmp_path, monkeypatch):
    from PIL import Image
    from skimage.data import coffee

    monkeypatch.chdir(tmp_path)
    Image.fromarray(coffee()).save("coffee.png")
    code, out, err = run(capsys, "demo", "--json", *options)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert {row["class"]: round(row["probability"], 2) for row in found["top"][: len(wanted)]} == wanted
    with Image.open(tmp_path / found["picture"]) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
    assert [stage["name"] for stage in found["stages"]][:2] == ["conv_stem", "blocks.0"]
    assert 380e6 < sum(stage["multiply_adds"] for stage in found["stages"]) < 410e6  # published: 407 M


@pytest.fixture(autouse=True)
def _peers_that_answer_at_once(monkeypatch):
    monkeypatch.setattr(demo, "compared", lambda: {"npdwconv": 0.004, "torch": 0.01, "onnxruntime": 0.005})


@needs_demo
def test_demo_as_a_page(capsys, tmp_path):
    code, out, _ = run(capsys, "demo", "--output", str(tmp_path / "cat.png"))
    assert code == 0
    for words in ("Egyptian cat", "blocks.15", "conv_head", "cat.png", "backend: reference"):
        assert words in out
    assert "network, weights frozen: 4.0 ms; onnxruntime 5.0 ms (1.25x), torch 10.0 ms (2.50x)" in out


@needs_demo
@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", "cut"], ids=["empty", "text", "head", "cut"]
)
def test_demo_with_a_damaged_photograph(content, capsys, tmp_path):
    from PIL import Image

    path = tmp_path / "photograph.png"
    if content == "cut":
        Image.effect_noise((64, 64), 50).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    code, out, err = run(capsys, "demo", "--image", str(path), "--output", str(tmp_path / "out.png"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "photograph.png" in err


@needs_demo
def test_demo_on_a_full_disk(capsys, tmp_path):
    full = pathlib.Path("/dev/full")
    if not full.exists():
        pytest.skip(reason="no /dev/full on this system")
    (tmp_path / "full.png").symlink_to(full)
    code, out, err = run(capsys, "demo", "--output", str(tmp_path / "full.png"))
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("npdwconv demo: --output")


@needs_demo
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image", "nowhere.png"), "nowhere.png"),
        (("--image", "."), "."),
        (("--output", "no/such/folder/cat.png"), "cannot be written"),
        (("--output", "cat.jpg"), "PNG"),
        (("--top", "0"), "top is 0"),
    ],
    ids=["image", "image-is-a-folder", "output", "output-is-no-png", "top"],
)
def test_demo_wrong_calls(options, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "demo", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert not list(tmp_path.iterdir())
