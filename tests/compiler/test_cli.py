"""The command line: what it prints, what it writes, its exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import analogc
from analogc.__main__ import main
from analogc.compiler.commands import targets as targets_command

MODELS = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, ids, scale):
        scores = self.head(self.embed(ids)) * scale
        return {"scores": scores, "pooled": scores.mean(1)}

ready = nn.Linear(4, 2)
number = 3

def text():
    return "no model"

def fails():
    raise ValueError("boom")

class Points(nn.Module):
    def __init__(self):
        super().__init__()
        self.points = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return torch.cdist(x, self.points)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "cli_models.py").write_text(MODELS)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")
    yield tmp_path
    for name in [name for name in sys.modules if name.endswith(("cli_models", "broken"))]:
        del sys.modules[name]


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture
def compiled(call: Call) -> str:
    code, _, err = call(
        "compile", "cli_models.py:build", "--input", "2x3x4", "--target", "generic-8bit-noisy",
        "--tile", "8x8", "--batch", "--seed", "1", "-o", "m.analogc",
    )  # fmt: skip
    assert (code, err) == (0, "")
    return "m.analogc"


# -- compile --------------------------------------------------------------------------------------


def test_compile_writes_a_file_and_says_what_is_in_it(call: Call) -> None:
    code, out, err = call("compile", "cli_models.py:build", "--input", "2x3x4", "-o", "m.analogc")
    assert (code, err) == (0, "")
    assert "generic-8bit, eval mode" in out and "2 layers analog" in out and "m.analogc" in out
    model = analogc.load("m.analogc")
    assert model(torch.randn(2, 3, 4)).shape == (2, 3)
    assert not model.training


def test_strict_refuses_what_would_stay_digital(call: Call) -> None:
    plain = ("compile", "cli_models.py:Points", "--input", "3x4", "-o", "m.analogc")
    code, out, _ = call(*plain)
    assert code == 0 and "1 unsupported" in out
    code, _, err = call(*plain, "--strict")
    assert code == 1 and "1 operator with stored weights would stay digital" in err
    assert "%cdist (aten.cdist)" in err and "cli_models.py:" in err


def test_compile_options_reach_the_compiler(call: Call, compiled: str) -> None:
    model = analogc.load(compiled)
    assert model.target.name == "generic-8bit-noisy" and model.seed == 1
    assert model.target.tile == analogc.TileSpec(8, 8)
    assert model(torch.randn(7, 3, 4)).shape == (7, 3)


@pytest.mark.parametrize("name", ["cli_models:build", "cli_models:ready", "cli_models.py:ready"])
def test_a_model_may_come_from_a_module_or_a_file(call: Call, name: str) -> None:
    shape = "2x4" if name.endswith("ready") else "2x3x4"
    assert call("compile", name, "--input", shape, "-o", "m.analogc")[0] == 0


def test_a_model_of_integers_and_two_inputs(call: Call) -> None:
    argv = ("--input", "2x5:int64", "--input", "2x5x1", "-o", "t.analogc")
    code, _, err = call("compile", "cli_models:Tokens", *argv)
    assert (code, err) == (0, "")
    code, out, _ = call("run", "t.analogc", "--output", "out.safetensors")
    assert code == 0 and "scores" in out and "2x5x4" in out
    assert set(safetensors.torch.load_file("out.safetensors")) == {"scores", "pooled"}


def test_train_mode(call: Call) -> None:
    argv = ("--input", "2x3x4", "--mode", "train", "-o", "m.analogc")
    assert call("compile", "cli_models:build", *argv)[0] == 0
    assert analogc.load("m.analogc").training


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested"])
def test_weights_are_loaded(call: Call, folder: Path, kind: str) -> None:
    state = {"weight": torch.full((2, 4), 0.5), "bias": torch.tensor([1.0, 2.0])}
    path = "w.safetensors" if kind == "safetensors" else "w.pt"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "nested" else state, path)
    argv = ("--input", "2x4", "--target", "ideal", "--weights", path, "-o", "m.analogc")
    assert call("compile", "cli_models:ready", *argv)[0] == 0
    y = analogc.load("m.analogc")(torch.ones(2, 4))
    assert torch.equal(y, torch.tensor([[3.0, 4.0]] * 2))


def test_layers_can_be_kept_digital(call: Call) -> None:
    argv = ("--input", "2x3x4", "--keep-digital", "3", "-o", "m.analogc")
    code, out, _ = call("compile", "cli_models:build", *argv)
    assert code == 0 and "1 layer analog" in out


def test_a_pipeline_can_be_given(call: Call) -> None:
    text = ",".join(str(step) for step in analogc.DEFAULT_PASSES)
    text = text.replace("map-tiles", "map-tiles{split=full}")
    argv = ("--input", "2x3x4", "--tile", "8x8", "--passes", text, "-o", "m.analogc")
    assert call("compile", "cli_models:build", *argv)[0] == 0
    assert analogc.load("m.analogc").tiles[0].row_bounds == (0, 8, 12)


def test_ranges_are_calibrated_on_data(call: Call) -> None:
    argv = ("compile", "cli_models:build", "--input", "2x3x4", "-o", "m.analogc")
    scales = []
    for size in (1.0, 100.0):
        np.save("x.npy", size * np.random.default_rng(0).normal(size=(9, 3, 4)))
        assert call(*argv, "--calibrate", "x.npy")[0] == 0
        ranges = dict(analogc.load("m.analogc").named_buffers())
        scales.append(next(float(v.max()) for k, v in ranges.items() if k.endswith("1_input")))
    assert scales[1] == pytest.approx(100 * scales[0], rel=0.05)


def test_a_target_file_can_be_edited(call: Call, folder: Path) -> None:
    _, out, _ = call("targets", "generic-8bit", "--json")
    (folder / "mine.json").write_text(
        out.replace('"bits": 8', '"bits": 6').replace("generic", "my")
    )
    argv = ("--input", "2x3x4", "--target", "mine.json", "-o", "m.analogc")
    assert call("compile", "cli_models:build", *argv)[0] == 0
    target = analogc.load("m.analogc").target
    assert target.name == "my-8bit" and target.adc == analogc.Converter(6)


# -- inspect --------------------------------------------------------------------------------------


def test_inspect_shows_ir_coverage_and_tiles(call: Call, compiled: str) -> None:
    code, out, err = call("inspect", compiled)
    assert (code, err) == (0, "")
    model = analogc.load(compiled)
    assert str(model) in out
    assert model.coverage.summary() in out and model.tiles.summary() in out


def test_inspect_as_json(call: Call, compiled: str) -> None:
    code, out, _ = call("inspect", compiled, "--json")
    data = json.loads(out)
    assert code == 0
    assert data["mode"] == "eval" and data["target"]["name"] == "generic-8bit-noisy"
    assert data["inputs"] == [{"name": "input", "shape": [None, 3, 4], "dtype": "float32"}]
    assert data["coverage"]["analog_share"] == 1.0
    assert [tile["array"] for tile in data["tiles"]] == ["1", "3"]
    assert data["ir"] == analogc.load(compiled).ir().splitlines()


def test_inspect_writes_a_page(call: Call, compiled: str, folder: Path) -> None:
    code, out, _ = call("inspect", compiled, "--html", "m.html", "--dot", "m.dot")
    assert code == 0 and "wrote m.html" in out and "wrote m.dot" in out
    assert (folder / "m.dot").read_text(encoding="utf-8").startswith("digraph")
    assert call("inspect", compiled, "--model-explorer", "m.json", "--json")[0] == 0
    assert json.loads((folder / "m.json").read_text(encoding="utf-8"))["graphs"]
    assert (folder / "m.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


# -- run ------------------------------------------------------------------------------------------


def test_run_prints_shapes_statistics_and_time(call: Call, compiled: str) -> None:
    code, out, err = call("run", compiled)
    assert (code, err) == (0, "")
    assert "2x3" in out and "float32" in out and re.search(r"ran in [\d.]+ ms", out)


def test_run_on_random_input_of_a_shape(call: Call, compiled: str) -> None:
    assert "5x3" in call("run", compiled, "--input", "5x3x4")[1]


def test_run_on_data_gives_what_the_model_gives(call: Call, compiled: str) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3, 4))
    np.save("x.npy", x)
    code, _, _ = call("run", compiled, "--data", "x.npy", "--seed", "5", "--output", "y.npy")
    assert code == 0
    model = analogc.load(compiled)
    model.program(5)
    expected = model(torch.tensor(x, dtype=torch.float32))
    assert np.array_equal(np.load("y.npy"), expected.detach().numpy())


def test_a_file_is_run_at_a_time(call: Call, tmp_path: Path) -> None:
    model = torch.nn.Linear(40, 3)
    with torch.no_grad():
        model.bias.zero_()
    x = torch.randn(8, 40)
    target = analogc.targets.pcm_like().replace(compensation="none", output_noise=0.0)
    path = tmp_path / "aging.analogc"
    analogc.compile(model, (x,), target=target, seed=0).save(path)
    np.save(tmp_path / "x.npy", x.numpy())
    sizes = []
    for seconds in ("0", "3e7"):
        out = str(tmp_path / "y.npy")
        code, _, _ = call("run", str(path), "--data", str(tmp_path / "x.npy"), "--output", out,
                          "--time", seconds)  # fmt: skip
        assert code == 0
        sizes.append(np.abs(np.load(out)).mean())
    assert 0.3 < sizes[1] / sizes[0] < 0.7
    assert "s ago" in call("inspect", str(path))[1]
    assert call("run", str(path), "--time", "-1")[0] != 0


def test_run_takes_inputs_by_name(call: Call) -> None:
    argv = ("--input", "2x5:int64", "--input", "2x5x1", "-o", "t.analogc")
    call("compile", "cli_models:Tokens", *argv)
    x = {"ids": torch.zeros(2, 5, dtype=torch.int32), "scale": torch.ones(2, 5, 1)}
    safetensors.torch.save_file(x, "x.safetensors")
    assert call("run", "t.analogc", "--data", "x.safetensors")[0] == 0
    np.save("ids.npy", x["ids"].numpy())
    np.save("scale.npy", x["scale"].numpy())
    assert call("run", "t.analogc", "--data", "ids.npy", "--data", "scale.npy")[0] == 0
    code, _, err = call("run", "t.analogc", "--data", "ids.npy")
    assert code == 1 and "no data for input scale" in err


def test_the_same_seed_gives_the_same_output(call: Call, compiled: str) -> None:
    tables = []
    for seed in ("3", "3", "4"):
        _, out, _ = call("run", compiled, "--seed", seed)
        tables.append(out.partition("ran in")[0])
    assert tables[0] == tables[1] != tables[2]


# -- targets and help -----------------------------------------------------------------------------


def test_targets_are_listed(call: Call) -> None:
    code, out, _ = call("targets")
    assert code == 0
    for name in analogc.targets.names():
        assert f"\n{name}\n" in f"\n{out}"
    assert "tiles of 512×512, 8-bit DAC, 8-bit ADC" in out


def test_targets_as_json(call: Call) -> None:
    data = json.loads(call("targets", "--json")[1])
    assert list(data) == list(analogc.targets.names())
    for name, fields in data.items():
        assert analogc.Target.from_dict(fields) == analogc.targets.get(name)


@pytest.mark.parametrize("command", ["compile", "inspect", "run", "targets", "demo"])
def test_every_command_has_help_with_an_example(call: Call, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0 and f"example:\n  analogc {command}" in out


def test_help_and_version(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0 and all(c in out for c in ("compile", "inspect", "run", "targets", "demo"))
    assert call("--version")[1] == f"analogc {analogc.__version__}\n"


def test_demo_passes_its_options_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("analogc.compiler.demo.run", lambda *args: seen.extend(args[:3]))
    assert call("demo", "--fast", "--out", "here", "--seed", "4")[0] == 0
    assert seen == ["here", True, 4]


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["compile"],
        ["compile", "m:f", "--input", "2x3y", "-o", "f"],
        ["compile", "m:f", "--input", "2x0", "-o", "f"],
        ["compile", "m:f", "--input", "2x3:float8", "-o", "f"],
        ["compile", "m:f", "--input", "2x3", "--tile", "8", "-o", "f"],
        ["compile", "m:f", "--input", "2x3", "--mode", "test", "-o", "f"],
        ["compile", "m:f", "--input", "2x3"],
        ["run", "f", "--input", "2", "--data", "x.npy"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_code_2(call: Call, argv: list[str]) -> None:
    code, _, err = call(*argv)
    assert code == 2 and "usage: analogc" in err


FAULTS = {
    "no colon": (["cli_models"], "does not name a model"),
    "no module": (["no_such_module:f"], "No module named 'no_such_module'"),
    "no file": (["none.py:f"], "no file 'none.py'"),
    "no function": (["cli_models:other"], "has no 'other'"),
    "import fails": (["broken.py:f"], "nothing_of_this_name"),
    "factory fails": (["cli_models:fails"], "ValueError: boom"),
    "no model": (["cli_models:text"], "returned a str"),
    "no function but a number": (["cli_models:number"], "is a int, not a function"),
    "wrong shape": (["cli_models:build", "--input", "2x5"], "could not capture"),
    "target": (["cli_models:build", "--target", "best"], "no target named 'best'"),
    "target file": (["cli_models:build", "--target", "no.json"], "no file 'no.json'"),
    "bad target file": (["cli_models:build", "--target", "bad.json"], "not valid JSON"),
    "binary target file": (["cli_models:build", "--target", "bin.json"], "not a text file"),
    "layer": (["cli_models:build", "--keep-digital", "head"], "no layer matches head"),
    "pass": (["cli_models:build", "--passes", "fold"], "no pass named 'fold'"),
    "no weights": (["cli_models:build", "--weights", "no.pt"], "no file 'no.pt'"),
    "bad weights": (["cli_models:build", "--weights", "bad.pt"], "cannot be read as weights"),
    "bad safetensors": (["cli_models:build", "--weights", "bad.safetensors"], "cannot be read"),
    "other weights": (["cli_models:build", "--weights", "other.pt"], "does not fit the model"),
    "weights are a list": (["cli_models:build", "--weights", "list.pt"], "holds a list"),
    "folder": (["cli_models:build", "-o", "none/m.analogc"], "no folder 'none'"),
    "little data": (["cli_models:build", "--calibrate", "one.npy"], "less than one batch of 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_compile_is_code_1_and_one_message(call: Call, folder: Path, fault: str) -> None:
    for name in ("bad.json", "bad.pt", "bad.safetensors"):
        (folder / name).write_text("nothing good")
    (folder / "bin.json").write_bytes(b"\xff\xfe\x00")
    torch.save({"x": torch.ones(1)}, "other.pt")
    torch.save([torch.ones(1)], "list.pt")
    np.save("one.npy", np.ones((1, 3, 4)))
    argv, message = FAULTS[fault]
    argv = argv if "--input" in argv else [*argv, "--input", "2x3x4"]
    argv = argv if "-o" in argv else [*argv, "-o", "m.analogc"]
    code, _, err = call("compile", *argv)
    assert code == 1 and message in err
    assert err.count("analogc: error:") == 1 and "debug" not in err
    assert not (folder / "m.analogc").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["inspect", "none"], "no file 'none'"),
        (["inspect", "cli_models.py"], "not a compiled model"),
        (["run", "none"], "no file 'none'"),
        (["run", "m.analogc", "--input", "2x3x5"], "has shape [2, 3, 5]"),
        (["run", "m.analogc", "--input", "2x3x4", "--input", "2"], "2 --input given"),
        (["run", "m.analogc", "--data", "none.npy"], "no file 'none.npy'"),
        (["run", "m.analogc", "--data", "cli_models.py"], "neither .npy nor .safetensors"),
        (["run", "m.analogc", "--data", "bad.npy"], "cannot be read"),
        (["run", "m.analogc", "--data", "x.npy", "--data", "x.npy"], "have data already"),
        (["run", "m.analogc", "--data", "ints.npy"], "has dtype torch.int64"),
        (["run", "m.analogc", "--output", "y.txt"], "cannot write 1 tensors"),
        (["inspect", "m.analogc", "--html", "none/m.html"], "No such file or directory"),
        (["targets", "none"], "no target named 'none'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_fault_in_other_commands_is_code_1(
    call: Call, compiled: str, folder: Path, argv: list[str], message: str
) -> None:
    (folder / "bad.npy").write_text("nothing good")
    np.save("x.npy", np.zeros((2, 3, 4)))
    np.save("ints.npy", np.zeros((2, 3, 4), dtype=np.int64))
    code, _, err = call(*argv)
    assert code == 1 and message in err and err.count("analogc: error:") == 1


def test_pickled_code_in_data_and_weights_is_not_run(call: Call, compiled: str) -> None:
    np.save("x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    code, _, err = call("run", compiled, "--data", "x.npy")
    assert code == 1 and "cannot be read" in err


def test_an_unexpected_error_points_to_debug(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(targets_command, "_targets", fail)
    code, _, err = call("targets")
    assert code == 1 and "ZeroDivisionError: oops" in err and "--debug" in err


def test_debug_shows_the_traceback(call: Call) -> None:
    with pytest.raises(analogc.errors.InputError):
        main(["inspect", "none", "--debug"])


def test_an_interrupt_is_code_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(targets_command, "_targets", stop)
    code, _, err = call("targets")
    assert code == 130 and err == "analogc: interrupted\n"


def test_warnings_are_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def warn(_: object) -> None:
        warnings.simplefilter("always")
        warnings.warn("mind this", stacklevel=1)

    monkeypatch.setattr(targets_command, "_targets", warn)
    code, _, err = call("targets")
    assert code == 0 and err == "analogc: warning: mind this\n"


def test_a_model_that_fails_on_an_input_is_the_users_fault(call: Call) -> None:
    model = nn.Embedding(3, 8)
    analogc.compile(model, (torch.zeros(2, 3, dtype=torch.int64),)).save("few.analogc")
    np.save("ids.npy", np.full((2, 3), 9))
    code, _, err = call("run", "few.analogc", "--data", "ids.npy")
    assert code == 1 and "does not run on this input" in err


def test_the_module_runs_as_a_command_and_survives_a_closed_pipe(
    call: Call, compiled: str, folder: Path
) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = f"{sys.executable} -m analogc inspect {compiled} --json"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -c 1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, env=env, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout in ("{141\n", "{0\n") and done.stderr == ""
