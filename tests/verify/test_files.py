"""``npdwconv verify`` on saved cases: exit codes, tables, JSON, what is saved and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from verify_calls import every_call

from npdwconv import cli
from npdwconv.cases import load, save

RIGHT = next(case for case in every_call() if case.op == "depthwise_conv2d")


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main(["verify", *argv])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def wrong():
    out = RIGHT.observed["out"].copy()
    out[0, 1] += 1
    return replace(RIGHT, observed={"out": out}, name="blocks.0.dw")


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    names = str(tmp_path / "right.npz"), str(tmp_path / "wrong.npz")
    save(RIGHT, names[0])
    save(wrong(), names[1])
    return names


def test_a_right_case(files, capsys):
    code, out, _ = run(capsys, files[0])
    assert code == 0
    assert "depthwise_conv2d is right" in out


def test_a_wrong_case_prints_its_page_and_exits_with_1(files, capsys):
    code, out, _ = run(capsys, files[1])
    assert code == 1
    assert "blocks.0.dw: depthwise_conv2d is WRONG" in out
    assert "worst element: out[0, 1" in out


def test_several_cases_make_a_table(files, capsys):
    code, out, _ = run(capsys, *files)
    assert code == 1
    assert "2 layers, 1 wrong" in out
    assert out.count("is WRONG") == 1
    assert "is right" not in out


def test_json(files, capsys):
    code, out, err = run(capsys, *files, "--json")
    found = json.loads(out)
    assert (code, err) == (1, "")
    assert set(found) == {"schema", "ok", "seconds", "layers", "skipped"}
    assert [layer["ok"] for layer in found["layers"]] == [True, False]
    assert found["layers"][1]["name"] == "blocks.0.dw"


def test_the_failing_case_is_saved(files, tmp_path, capsys):
    run(capsys, *files, "--save", str(tmp_path / "bug.npz"))
    found = load(tmp_path / "bug.npz")
    assert found.name == "blocks.0.dw"
    np.testing.assert_array_equal(found.observed["out"], wrong().observed["out"])


def test_several_failing_cases_are_numbered(files, tmp_path, capsys):
    run(capsys, files[1], files[0], files[1], "--save", str(tmp_path / "bug.npz"))
    assert sorted(path.name for path in tmp_path.glob("bug*")) == ["bug-1.npz", "bug-3.npz"]


def test_the_worst_layer_is_drawn(files, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="draws")
    run(capsys, *files, "--plot", str(tmp_path / "errors.png"))
    assert (tmp_path / "errors.png").read_bytes()[:4] == b"\x89PNG"


def test_arithmetic_that_is_named(tmp_path, capsys):
    kept = (RIGHT.operands["x"].view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    truncated = replace(RIGHT, operands=RIGHT.operands | {"x": kept})
    save(replace(RIGHT, observed=_observed(truncated)), tmp_path / "tf32.npz")
    assert run(capsys, str(tmp_path / "tf32.npz"))[0] == 1
    assert run(capsys, str(tmp_path / "tf32.npz"), "--compute", "float32", "--compute", "tf32")[0] == 0


def _observed(case):
    from verify_calls import observed

    return observed(case).observed


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nothing.npz"], "no such file"),
        (["{folder}/other.txt"], "needed a case"),
        (["{right}", "--plot", "errors.pdf"], "PNG"),
        (["{right}", "--save", "{folder}/none/bug.npz"], "can be written"),
        (["{right}", "--input", "x.npy"], "x.npy"),
        (["{right}", "--input", "{array}", "--input", "{array}"], "need a name each"),
    ],
)
def test_wrong_calls(argv, said, files, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("")
    np.save(tmp_path / "x.npy", np.zeros(3))
    texts = {"folder": tmp_path, "right": files[0], "array": tmp_path / "x.npy"}
    code, _, err = run(capsys, *(text.format(**texts) for text in argv))
    assert code == 2
    assert said in err


def test_a_case_that_does_not_hold_together(tmp_path, capsys):
    save(replace(RIGHT, operands=RIGHT.operands | {"weight": np.zeros((5, 1, 3, 3), np.float32)}), tmp_path / "c.npz")
    code, _, err = run(capsys, str(tmp_path / "c.npz"))
    assert code == 2
    assert "multiple" in err
