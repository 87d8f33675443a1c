"""Files: what is saved comes back bit for bit; what is damaged or malicious is a FormatError."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import analogc
from analogc import Converter, GaussianDevice, TileSpec
from analogc.compiler import archive
from analogc.errors import FormatError, InputError, UnsupportedError

X = torch.linspace(-1.0, 1.0, 3 * 2 * 5 * 5).reshape(3, 2, 5, 5)


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None
    parts: dict[str, Tensor] | None = None


class Net(nn.Module):
    """Folded batch norm, a tied weight, a buffer that is not persistent, a grouped conv."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.body = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.body.weight
        self.register_buffer("mask", torch.tensor([1.0, 0.5, 1.0, 2.0]), persistent=False)
        self.body.bias.requires_grad_(False)

    def forward(self, x: Tensor, *, shift: Tensor | None = None) -> Output:
        x = self.grouped(torch.relu(self.norm(self.conv(x)))).flatten(1) * self.mask
        y = self.again(torch.tanh(self.body(x)))
        if shift is not None:
            y = y + shift
        return Output(y, None, {"a": x, "b": y + 1})


TARGETS = {
    "ideal": analogc.targets.ideal(),
    "generic-8bit": analogc.targets.generic_8bit(),
    "generic-8bit-noisy": analogc.targets.generic_8bit_noisy(),
    "own": analogc.Target(
        "own",
        TileSpec(5, 6, columns_per_weight=2),
        Converter(7, "dynamic"),
        Converter(9, per_column=True),
        weight_scale="tensor",
        device=GaussianDevice(0.1),
        output_noise=0.01,
    ),
}


def make(target: str = "generic-8bit", **options: Any) -> analogc.CompiledModel:
    torch.manual_seed(4)
    return analogc.compile(
        Net().eval(), (X,), {"shift": torch.ones(4)}, target=TARGETS[target], seed=3, **options
    )


def call(model: nn.Module, x: Tensor = X) -> list[Tensor]:
    out = model(x, shift=torch.ones(4))
    return [out.logits, out.parts["a"], out.parts["b"]]


def assert_same(first: nn.Module, second: nn.Module, x: Tensor = X) -> None:
    for a, b in zip(call(first, x), call(second, x), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.analogc"


# -- round trip -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_loaded_model_is_equal_bit_for_bit(target: str, path: Path) -> None:
    compiled = make(target)
    call(compiled)
    compiled.save(path)
    loaded = analogc.load(path)
    for _ in range(2):
        assert_same(loaded, compiled)
    assert loaded.target == compiled.target
    assert loaded.seed == compiled.seed
    assert loaded.ir() == compiled.ir()
    assert str(loaded.tiles) == str(compiled.tiles)
    assert loaded.coverage == compiled.coverage
    written = {name: w.times_programmed for name, w in compiled.weights.items()}
    assert {name: w.times_programmed for name, w in loaded.weights.items()} == written


def test_saving_what_was_loaded_loses_nothing(path: Path) -> None:
    compiled = make()
    first = archive.to_bytes(compiled)
    path.write_bytes(first)
    second = archive.to_bytes(analogc.load(path))
    ours, theirs = safetensors_of(second), safetensors_of(first)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    for key in ("format", "target", "seed", "modules", "training", "tensors", "arrays"):
        assert manifest_of(second)[key] == manifest_of(first)[key]
    for one, other in zip(
        manifest_of(second)["programs"], manifest_of(first)["programs"], strict=True
    ):
        assert one["signature"] == other["signature"]
        for node, same in zip(one["graph"], other["graph"], strict=True):
            # The last argument of an analog operator is the key of its tiles, new in each process.
            if "tiles" in node:
                node["args"][-1] = same["args"][-1]
            assert node == same


def test_tensors_keep_names_ties_flags_and_dtypes(path: Path) -> None:
    compiled = make()
    compiled.save(path)
    loaded = analogc.load(path)
    ours, theirs = dict(loaded.named_parameters()), dict(compiled.named_parameters())
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value)
        assert ours[name].requires_grad == value.requires_grad
        assert isinstance(ours[name], nn.Parameter)
    assert loaded.get_parameter("again.weight") is loaded.get_parameter("body.weight")
    assert list(loaded.state_dict()) == list(compiled.state_dict())
    assert "mask" not in loaded.state_dict()
    assert torch.equal(loaded.get_buffer("mask"), compiled.get_buffer("mask"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_survive(dtype: torch.dtype, path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)
    x = torch.randn(3, 6).to(dtype)
    compiled = analogc.compile(model, (x,), seed=0)
    compiled.save(path)
    loaded = analogc.load(path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(loaded(x), compiled(x))


def test_dynamic_batch_works_after_loading(path: Path) -> None:
    compiled = make(dynamic_shapes={"x": {0: torch.export.Dim("b")}, "shift": None})
    compiled.save(path)
    loaded = analogc.load(path)
    for x in (X[:1], X[:2], torch.cat([X, X, X])):
        assert_same(loaded, compiled, x)
    assert "s0" in loaded.ir()
    with pytest.raises(InputError, match="any"):
        call(loaded, X[:, :1])


def test_output_structure_survives_without_its_class(path: Path) -> None:
    compiled = make("ideal")
    compiled.save(path)
    out = analogc.load(path)(X, shift=torch.ones(4))
    assert type(out).__name__ == "Output"
    assert out.hidden is None
    assert sorted(out.parts) == ["a", "b"]


def test_loaded_model_trains_and_follows_its_weights(path: Path) -> None:
    compiled = make()
    compiled.save(path)
    loaded = analogc.load(path)
    for each in (compiled, loaded):
        optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            sum(y.square().sum() for y in call(each)).backward()  # type: ignore[union-attr]
            optimizer.step()
    assert_same(loaded, compiled)
    assert loaded.sync() == []


def test_loaded_model_can_be_calibrated_and_programmed(path: Path) -> None:
    compiled = make("generic-8bit-noisy")
    compiled.save(path)
    loaded = analogc.load(path)
    data = [((X * 3), {"shift": torch.ones(4)})]
    with pytest.raises(InputError, match="needs data"):
        loaded.calibrate()
    for each in (compiled, loaded):
        each.calibrate([{"x": x, **kwargs} for x, kwargs in data], method="absmax")
        each.program(seed=11)
    assert_same(loaded, compiled)


def test_auto_sync_and_mode_survive(path: Path) -> None:
    compiled = make().train()
    compiled.auto_sync = False
    compiled.save(path)
    loaded = analogc.load(path)
    assert loaded.training and not loaded.auto_sync
    loaded.eval()
    assert not loaded.training


def test_state_dict_goes_both_ways_between_the_model_and_the_file(path: Path) -> None:
    make().save(path)
    loaded = analogc.load(path)
    torch.manual_seed(77)
    digital = Net().eval()
    loaded.load_state_dict(digital.state_dict())
    ideal = analogc.compile(copy.deepcopy(digital), (X,), {"shift": torch.ones(4)},
                            target="generic-8bit", seed=3)  # fmt: skip
    with torch.no_grad():
        buffers = dict(ideal.named_buffers())
        for name, value in loaded.named_buffers():
            buffers[name].copy_(value)
    assert_same(loaded, ideal)
    torch.manual_seed(78)
    other = Net().eval()
    other.load_state_dict(loaded.state_dict())
    for name, value in digital.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_loading_needs_no_model_class(path: Path) -> None:
    compiled = make("generic-8bit-noisy")
    compiled.save(path)
    torch.save({"x": X, "want": call(compiled)}, path.with_suffix(".pt"))
    script = """
import sys, torch, analogc
torch.set_num_threads(1)
held = torch.load(sys.argv[1] + ".pt")
model = analogc.load(sys.argv[1] + ".analogc")
out = model(held["x"], shift=torch.ones(4))
got = [out.logits, out.parts["a"], out.parts["b"]]
assert all(torch.equal(a, b) for a, b in zip(got, held["want"], strict=True))
print("equal")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path.with_suffix(""))],
        capture_output=True,
        text=True,
        cwd=path.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


def test_file_holds_no_pickle_and_is_a_safetensors_file(path: Path) -> None:
    make().save(path)
    tensors = safetensors.torch.load_file(path)
    assert {"conv.weight", "body.weight"} <= set(tensors)
    # The first eight bytes are the length of the header, and may be any.
    assert path.read_bytes()[8:9] == b"{"


@pytest.mark.parametrize("name", ["a-b", "my key", "é"])
def test_odd_module_names_survive(name: str, path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({name: nn.Linear(6, 6)})

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers[name](x)
            return out

    x = torch.randn(3, 6)
    compiled = analogc.compile(Odd(), (x,), seed=0)
    compiled.save(path)
    loaded = analogc.load(path)
    assert torch.equal(loaded(x), compiled(x))
    assert list(loaded.state_dict()) == list(compiled.state_dict())


# -- writing --------------------------------------------------------------------------------------


def test_failed_save_leaves_the_old_file_and_no_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = make()
    compiled.save(path)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        compiled.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_interrupted_replacement_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"precious")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make().save(path)
    assert path.read_bytes() == b"precious"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_model_that_cannot_be_written_leaves_the_old_file(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(UnsupportedError, match="meta device"):
        make().to("meta").save(path)
    assert path.read_bytes() == b"precious"


def test_save_takes_text_paths_and_replaces_what_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "m.analogc")
    make("ideal").save(path)
    make("generic-8bit").save(path)
    assert analogc.load(path).target.name == "generic-8bit"


# -- damaged files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> bytes:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    compiled = analogc.compile(model, (torch.randn(4, 3),), seed=0, dynamic_shapes="batch")
    return archive.to_bytes(compiled)


def refused(data: bytes, path: Path) -> FormatError:
    path.write_bytes(data)
    with pytest.raises(FormatError) as info:
        analogc.load(path)
    return info.value


def test_missing_file_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.analogc", tmp_path):
        with pytest.raises(InputError, match="no file"):
            analogc.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\0" * 8,
        b"\xff" * 8,
        b"\xff" * 4096,
        b"hello, this is not a model",
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x04\x95" + b"\0" * 100,
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        b'{"format": 1}',
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_such_file_is_refused(content: bytes, path: Path) -> None:
    assert str(path) in str(refused(content, path))


def test_ordinary_safetensors_file_is_refused(path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"analogc.manifest": "{}"}):
        data = safetensors.torch.save({"weight": torch.ones(3)}, metadata)
        assert "not of a compiled model" in str(refused(data, path))


def test_pickle_is_refused_and_not_run(path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {path.parent}/pwned",)

    torch.save(Bomb(), path)
    refused(path.read_bytes(), path)
    assert not (path.parent / "pwned").exists()


def test_file_that_is_cut_off_anywhere_is_refused(small: bytes, path: Path) -> None:
    lengths = {0, 1, 7, 8, 9, len(small) - 1, len(small) - 4, len(small) // 2}
    lengths |= set(random.Random(0).sample(range(len(small)), 150))
    for length in sorted(lengths):
        refused(small[:length], path)


def test_file_with_something_appended_is_refused(small: bytes, path: Path) -> None:
    for tail in (b"\0", b"{}", small):
        refused(small + tail, path)


def test_single_changed_byte_anywhere_is_refused(small: bytes, path: Path) -> None:
    chance = random.Random(1)
    header = 8 + int.from_bytes(small[:8], "little")
    places = set(range(8)) | set(chance.sample(range(8, header), 200))
    places |= set(chance.sample(range(header, len(small)), 100)) | {len(small) - 1}
    # Spaces that pad the header mean nothing, and JSON has more than one way to write the same.
    for place in sorted(places):
        for flip in (0x01, 0x80, 0xFF):
            data = bytearray(small)
            data[place] ^= flip
            path.write_bytes(bytes(data))
            try:
                loaded = analogc.load(path)
            except FormatError:
                continue
            assert small[place : place + 1] == b" ", place
            assert archive.to_bytes(loaded) == small


# -- altered manifests ----------------------------------------------------------------------------


def safetensors_of(data: bytes) -> dict[str, Tensor]:
    return dict(safetensors.torch.load(data))


def manifest_of(data: bytes) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    manifest: dict[str, Any] = json.loads(header["__metadata__"]["analogc.manifest"])
    return manifest


def altered(data: bytes, edit: Callable[[dict[str, Any], dict[str, Tensor]], Any]) -> bytes:
    """The file with its manifest edited by someone who knows how to compute the checksum."""
    tensors, manifest = safetensors_of(data), manifest_of(data)
    edit(manifest, tensors)
    text = json.dumps(manifest)
    checksum = archive._checksum(text, tensors)
    return safetensors.torch.save(tensors, {"analogc.manifest": text, "analogc.sha256": checksum})


def graph(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = manifest["programs"][0]["graph"]
    return nodes


def node(manifest: dict[str, Any], op: str) -> dict[str, Any]:
    return next(n for n in graph(manifest) if n["op"] == op or str(n["target"]).startswith(op))


def expression(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = next(iter(manifest["derived"].values()))["graph"]
    return nodes


def test_unedited_manifest_is_accepted(small: bytes, path: Path) -> None:
    path.write_bytes(altered(small, lambda m, t: None))
    assert analogc.load(path).tiles


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[str]:
    """Python that leaves a trace when it is run; the trace is looked for in the end."""
    trace = tmp_path / "pwned"
    yield f"__import__('pathlib').Path({str(trace)!r}).touch()"
    assert not trace.exists(), "code from the file was executed"


INJECTIONS = [
    'x"); {}; ("',
    "x'); {}; ('",
    "x\n    {}\n",
    'x\\"); {}; (\\"',
    "x={}",
    "{}",
    "x; {}",
    "x[{}]",
    "\u2028{}",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of every text and of every key of a manifest; a key's path ends in ``None``."""
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(value, dict):
            yield (*path, key, None)
        if isinstance(item, str):
            yield (*path, key)
        elif isinstance(item, dict | list):
            yield from places(item, (*path, key))


def kind(manifest: dict[str, Any], path: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a place is for: places of one kind are read by the same code."""
    at: Any = manifest
    for key in path[:-1]:
        at = at[key] if key is not None else at
    value = None if path[-1] is None else at[path[-1]]
    named = tuple(key for key in path if isinstance(key, str) or key is None)
    return named, value if "op" in named or "target" in named or "$" in named else None


def inject(data: bytes, path: tuple[Any, ...], text: str) -> bytes:
    def edit(manifest: dict[str, Any], tensors: Any) -> None:
        *way, last = path if path[-1] is not None else path[:-1]
        at: Any = manifest
        for key in way:
            at = at[key]
        if path[-1] is None:
            at[text] = at.pop(last)
        else:
            at[last] = text

    return altered(data, edit)


def use(data: bytes, path: Path) -> None:
    """Load a file; if it loads, do all that a user may do with it."""
    path.write_bytes(data)
    try:
        loaded = analogc.load(path)
    except FormatError:
        return
    str(loaded), str(loaded.coverage), loaded.code, copy.deepcopy(loaded)
    torch.fx.GraphModule(loaded._root, copy.deepcopy(loaded.graph)).print_readable(False)
    try:
        loaded(torch.randn(4, 3))
    except (analogc.errors.AnalogcError, RuntimeError, TypeError, IndexError, ValueError):
        pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("injection", INJECTIONS)
def test_no_text_and_no_key_of_a_file_is_ever_run(
    injection: str, trap: str, small: bytes, path: Path
) -> None:
    manifest = manifest_of(small)
    distinct = {kind(manifest, place): place for place in places(manifest)}
    assert len(distinct) > 100
    for place in distinct.values():
        use(inject(small, place, injection.replace("{}", trap)), path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["module", "parameter", "derived weight"])
def test_module_with_code_for_a_name_is_refused_even_if_all_refer_to_it(
    part: str, small: bytes, path: Path
) -> None:
    trace = path.parent / "pwned"
    # fx would write getattr(self, "...") for it; no dots, which would split it.
    code = f"training\"), getattr(__import__('os'), 'mkdir')('{trace}'), (\""
    assert "." not in code
    old, new = {
        "module": ("0", code),
        "parameter": ("0.weight", f"0.{code}"),
        "derived weight": ("0_weight", code),
    }[part]

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(item) for item in value]
        if isinstance(value, dict):
            return {renamed(key): renamed(item) for key, item in value.items()}
        if isinstance(value, str) and f".{value}.".replace(f".{old}.", "") != f".{value}.":
            return f".{value}.".replace(f".{old}.", f".{new}.")[1:-1]
        return value

    def edit(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        changed = renamed(copy.deepcopy(manifest))
        assert changed != manifest
        manifest.clear()
        manifest.update(changed)
        for name in list(tensors):
            tensors[renamed(name)] = tensors.pop(name)

    use(altered(small, edit), path)
    assert not trace.exists()
    refused(altered(small, edit), path)


def put(manifest: dict[str, Any], *nodes: dict[str, Any]) -> None:
    graph(manifest)[1:1] = list(nodes)


def ref(name: str) -> dict[str, str]:
    return {"$": "node", "v": name}


@pytest.mark.parametrize("where", ["graph", "expression"])
@pytest.mark.parametrize(
    ("op", "target", "args"),
    [
        ("get_attr", "__class__", []),
        ("get_attr", "forward", []),
        ("get_attr", "train.__globals__", []),
        ("get_attr", "_parameters", []),
        ("get_attr", "no.such.tensor", []),
        ("get_attr", "0", []),
        ("call_module", "__setattr__", ["training", 1]),
        ("call_module", "train.__globals__.get", ["__builtins__"]),
        ("call_module", "__class__.__getattribute__", ["x", "__class__"]),
        ("call_module", "apply", []),
        ("call_module", "0", []),
        ("call_module", "_analog.ranges", []),
        ("call_method", "__class__", []),
        ("call_function", "os.system", ["true"]),
        ("call_function", "builtins.eval", ["1"]),
        ("call_function", "torch.load", ["x"]),
        ("call_function", "torch.ops.aten.add.Tensor", []),
        ("call_function", "operator.call", []),
        ("call_function", "operator.attrgetter", ["x"]),
        ("call_function", "operator.methodcaller", ["x"]),
        ("call_function", "aten.from_file.default", ["/etc/passwd", False, 10]),
        ("call_function", "aten.from_file.out", ["/etc/passwd"]),
        ("call_function", "aten.save.default", [1, "/tmp/x"]),
        ("call_function", "aten.manual_seed.default", [1]),
        ("call_function", "aten.set_data.default", []),
        ("call_function", "aten.no_such_operator.default", []),
        ("call_function", "aten.add.no_such_overload", []),
        ("call_function", "aten.__class__.default", []),
        ("call_function", "aten.add.__call__", []),
        ("call_function", "aten.add._op", []),
        ("call_function", "aten.add", []),
        ("call_function", "custom.op.default", []),
        ("call_function", "profiler._record_function_enter.default", ["x"]),
        ("call_function", ["aten.add.Tensor"], []),
        ("call_function", None, []),
        ("eval", "x", []),
        (None, None, None),
    ],
)
def test_reference_to_anything_but_tensors_and_known_operators_is_refused(
    op: Any, target: Any, args: Any, where: str, small: bytes, path: Path
) -> None:
    new = {"name": "evil", "op": op, "target": target, "args": args}

    def edit(manifest: dict[str, Any], tensors: Any) -> None:
        nodes = graph(manifest) if where == "graph" else expression(manifest)
        nodes.insert(1, new)

    refused(altered(small, edit), path)


def test_way_to_eval_through_the_attributes_of_a_module_is_closed(
    trap: str, small: bytes, path: Path
) -> None:
    def edit(manifest: dict[str, Any], tensors: Any) -> None:
        put(
            manifest,
            {"name": "a", "op": "call_module", "target": "__class__.__getattribute__",
             "args": [ref("input_1"), "__init__"]},
            {"name": "b", "op": "call_function", "target": "operator.getitem",
             "args": [ref("a"), "__builtins__"]},
            {"name": "c", "op": "call_module", "target": "__setattr__",
             "args": ["training", ref("b")]},
            {"name": "d", "op": "call_module", "target": "training", "args": [trap]},
        )  # fmt: skip

    refused(altered(small, edit), path)


HUGE = 2**62
EMPTY: dict[str, Any] = {"graph": [], "keeps": "value"}


def set_in(*keys: Any, value: Any) -> Callable[[dict[str, Any], Any], None]:
    def edit(manifest: dict[str, Any], tensors: Any) -> None:
        at: Any = manifest
        for key in keys[:-1]:
            at = next(iter(at.values())) if key is next else at[key]
        last = keys[-1]
        at[next(iter(at)) if last is next else last] = value

    return edit


def in_node(op: str, *keys: Any, value: Any) -> Callable[[dict[str, Any], Any], None]:
    def edit(manifest: dict[str, Any], tensors: Any) -> None:
        set_in(*keys, value=value)(node(manifest, op), tensors)

    return edit


EDITS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "other format": set_in("format", value=3),
    "no format": lambda m, t: m.pop("format"),
    "no target": lambda m, t: m.pop("target"),
    "target of other fields": set_in("target", value={"name": "x", "evil": 1}),
    "target with a huge converter": set_in("target", "adc", "bits", value=HUGE),
    "target of an unknown device": set_in("target", "device", "kind", value="os.system"),
    "tile of no rows": set_in("target", "tile", "rows", value=0),
    "seed that is no number": set_in("seed", value="0"),
    "no programs": set_in("programs", value=[]),
    "programs that are no list": set_in("programs", value=7),
    "mode of the wrong length": set_in("programs", 0, "mode", value=[False]),
    "empty graph": set_in("programs", 0, "graph", value=[]),
    "graph that is no list": set_in("programs", 0, "graph", value="x"),
    "node that is no object": set_in("programs", 0, "graph", 0, value=3),
    "name that is a keyword": set_in("programs", 0, "graph", 0, "name", value="import"),
    "input name that is a keyword": in_node("placeholder", "target", value="lambda"),
    "input name with a dot": in_node("placeholder", "target", value="a.b"),
    "unknown argument": in_node("analogc.", "args", 0, value={"$": "eval", "v": "1"}),
    "argument of other keys": in_node("analogc.", "args", 0, value={"x": 1}),
    "use before definition": in_node("analogc.", "args", 0, value=ref("output")),
    "node used by itself": in_node("analogc.", "args", 0, value=ref("batch_norm")),
    "unknown dtype": in_node("placeholder", "value", "dtype", value="Tensor"),
    "dtype that is a function": in_node("placeholder", "value", "dtype", value="load"),
    "negative size": in_node("placeholder", "value", "shape", value=[-1, 3]),
    "huge size": in_node("placeholder", "value", "shape", value=[HUGE, HUGE]),
    "size that is a bool": in_node("placeholder", "value", "shape", value=[True, 3]),
    "huge symbol": in_node(
        "placeholder", "value", "shape", value=[{"symbol": "s0", "hint": 2**70}, 3]
    ),
    "negative symbol": in_node(
        "placeholder", "value", "shape", value=[{"symbol": "s0", "hint": -1}, 3]
    ),
    "symbol of no name": in_node("placeholder", "value", "shape", value=[{"hint": 1}, 3]),
    "shape of another layer": in_node("placeholder", "value", "shape", value=[4, 8]),
    "no tiles": lambda m, t: node(m, "analogc.").pop("tiles"),
    "tiles of another array": in_node("analogc.", "tiles", "array", value="other"),
    "tiles of another shape": in_node("analogc.", "tiles", "weight_shape", value=[9, 9]),
    "huge tiles": in_node("analogc.", "tiles", "row_bounds", value=[0, HUGE]),
    "rows that fall": in_node("analogc.", "tiles", "row_bounds", value=[0, 3, 2]),
    "no rows": in_node("analogc.", "tiles", "row_bounds", value=[]),
    "zero columns a weight": in_node("analogc.", "tiles", "columns_per_weight", value=0),
    "tiles that are a text": in_node("analogc.", "tiles", value="x"),
    "tile of the wrong type": in_node("analogc.", "tiles", "first_tile", value="0"),
    "spec that is no JSON": in_node("analogc.", "args", -2, value="{"),
    "spec that nests deeply": in_node("analogc.", "args", -2, value="[" * 100_000),
    "spec of other rows": in_node(
        "analogc.", "args", -2,
        value='{"rows":[0,2,3],"dac":null,"adc":null,"weight_scale":"column",'
        '"device":{"kind":"ideal"},"output_noise":0}',
    ),
    "spec that is a number": in_node("analogc.", "args", -2, value=7),
    "spec of the array": set_in("arrays", next, "spec", value="{}"),
    "other rows in the array": set_in(
        "arrays", next, "spec",
        value='{"rows":[0,1,3],"dac":null,"adc":null,"weight_scale":"column",'
        '"device":{"kind":"ideal"},"output_noise":0}',
    ),
    "no spec of the array": set_in("arrays", next, value={}),
    "no arrays": set_in("arrays", value={}),
    "arrays that are a list": set_in("arrays", value=[]),
    "count that is a text": set_in("arrays", next, "times_programmed", value="x"),
    "derived name that is a method": lambda m, t: m["derived"].update(forward=EMPTY),
    "derived name with a dot": lambda m, t: m["derived"].update({"a.b": EMPTY}),
    "derived weight that keeps something else": set_in("derived", next, "keeps", value="x"),
    "derived expression gone": set_in("derived", value={}),
    "derived expression of no output": set_in("derived", next, "graph", value=[]),
    "derived expression of a huge shape": lambda m, t: expression(m).__setitem__(
        slice(-1, None),
        [{"name": "evil", "op": "call_function", "target": "aten.zeros.default",
          "args": [[HUGE, HUGE]]},
         {"name": "output", "op": "output", "target": "output", "args": [ref("evil")]}],
    ),
    "derived expression of another shape": lambda m, t: expression(m)[-1].update(
        args=[ref([n for n in expression(m) if n["op"] == "placeholder"][-1]["name"])]
    ),
    "module that is a path to nowhere": set_in("modules", 1, value="a..b"),
    "module that is a number": set_in("modules", 1, value=5),
    "modules gone": set_in("modules", value=[""]),
    "modes that are too few": set_in("training", value=[True]),
    "mode that was never captured": lambda m, t: m.update(training=[True] * len(m["training"])),
    "tensors gone": set_in("tensors", value=[]),
    "tensor of no name": set_in("tensors", 0, "names", value=[]),
    "tensor that the file does not hold": set_in("tensors", 0, "names", value=["0.nothing"]),
    "tensor of an unknown module": set_in("tensors", 0, "names", value=["nowhere.weight"]),
    "weights of the file gone": lambda m, t: t.pop("0.weight"),
    "weight of another shape": lambda m, t: t.update({"0.weight": torch.zeros(7, 9)}),
    "weight of another dtype": lambda m, t: t.update({"0.weight": torch.zeros(2, 3).long()}),
    "range of another shape": lambda m, t: t.update(
        {n: torch.zeros(0) for n in t if ".ranges." in n}
    ),
    "range of many": lambda m, t: t.update({n: torch.ones(9) for n in t if ".ranges." in n}),
    "tile contents of another shape": lambda m, t: t.update(
        {n: torch.zeros(1, 1) for n in t if ".tiles." in n}
    ),
    "tile contents gone": lambda m, t: [t.pop(n) for n in list(t) if ".tiles." in n],
    "no signature": lambda m, t: m["programs"][0].pop("signature"),
    "inputs that are no structure": set_in("programs", 0, "signature", "in", value="**"),
    "inputs of an unknown kind": set_in("programs", 0, "signature", "in", value=["set", []]),
    "outputs of a keyword's name": set_in(
        "programs", 0, "signature", "out", value=["named", "class", [], [], []]
    ),
    "outputs with a field that is no name": set_in(
        "programs", 0, "signature", "out", value=["named", "Out", ["a b"], [], ["*"]]
    ),
    "more inputs than the graph has": set_in(
        "programs", 0, "signature", "in", value=["tuple", [["tuple", ["*", "*"]], ["dict", [], []]]]
    ),
    "more outputs than the graph has": set_in(
        "programs", 0, "signature", "out", value=["tuple", ["*", "*"]]
    ),
    "leaves gone": set_in("programs", 0, "signature", "leaves", value=[]),
    "leaf of a name that is no name": set_in(
        "programs", 0, "signature", "leaves", 0, "name", value="a b"
    ),
    "parameters that are no list": set_in("programs", 0, "signature", "parameters", value="x"),
    "parameter of an unknown kind": set_in(
        "programs", 0, "signature", "parameters", value=[["x", 99, False, None]]
    ),
    "lists that nest deeply": set_in("seed", value=json.loads("[" * 900 + "]" * 900)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.parametrize("what", EDITS)
def test_altered_manifest_is_refused(what: str, small: bytes, path: Path) -> None:
    error = refused(altered(small, EDITS[what]), path)
    assert str(path) in str(error) or error.message


def test_huge_tensor_in_the_header_is_refused(small: bytes, path: Path) -> None:
    length = int.from_bytes(small[:8], "little")
    header = json.loads(small[8 : 8 + length])
    name = next(n for n in header if n != "__metadata__")
    for change in (
        {"shape": [HUGE, HUGE]},
        {"shape": [2**40]},
        {"data_offsets": [0, HUGE]},
        {"data_offsets": [10, 2]},
        {"dtype": "F128"},
        {"shape": [-1]},
    ):
        edited = copy.deepcopy(header)
        edited[name].update(change)
        text = json.dumps(edited).encode()
        refused(len(text).to_bytes(8, "little") + text + small[8 + length :], path)


def test_error_names_the_file_and_wrong_checksum_says_so(small: bytes, path: Path) -> None:
    tensors = safetensors_of(small)
    header = json.loads(small[8 : 8 + int.from_bytes(small[:8], "little")])
    metadata = dict(header["__metadata__"])
    metadata["analogc.manifest"] += " "
    error = refused(safetensors.torch.save(tensors, metadata), path)
    assert "altered or damaged" in error.message
    assert str(path) in error.message


def test_custom_operators_load_only_if_their_namespace_is_named(path: Path) -> None:
    if not hasattr(torch.ops, "archive_test") or not hasattr(torch.ops.archive_test, "twice"):

        @torch.library.custom_op("archive_test::twice", mutates_args=())
        def twice(x: Tensor) -> Tensor:
            return x * 2

        twice.register_fake(torch.empty_like)

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.ops.archive_test.twice(self.layer(x))
            return out

    x = torch.randn(3, 6)
    compiled = analogc.compile(Custom(), (x,), seed=0)
    compiled.save(path)
    with pytest.raises(FormatError, match="may not be loaded") as info:
        analogc.load(path)
    assert "allow_ops" in str(info.value.fix)
    with torch.no_grad():
        loaded = analogc.load(path, allow_ops=("archive_test",))
        assert torch.equal(loaded(x), compiled(x))
