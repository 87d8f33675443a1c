"""Finding and loading the library; noise, hashes and helpers of the backward pass."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from analogc.runtime import philox, tiles
from analogc.runtime.native import loader, tensors
from analogc.runtime.native.layer import Packed
from analogc.runtime.native.loader import Library
from analogc.runtime.spec import LayerSpec


def load(**env: str) -> subprocess.CompletedProcess[str]:
    code = (
        "from analogc.runtime.native import loader\n"
        "for _ in range(2): found = loader.library()\n"
        "print(found and found.isa)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True
    )


def test_environment_chooses(native: Library) -> None:
    off = load(ANALOGC_NATIVE="0")
    assert (off.stdout, off.stderr) == ("None\n", "")
    assert load(ANALOGC_ISA=native.isas[0]).stdout == f"{native.isas[0]}\n"
    unknown = load(ANALOGC_ISA="mmx")
    assert unknown.stdout == "None\n" and unknown.stderr.count("RuntimeWarning") == 1


def test_a_missing_library_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANALOGC_NATIVE", raising=False)
    monkeypatch.setattr(loader, "find", lambda: None)
    loader.library.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="was not built") as record:
            assert loader.library() is None
            assert loader.library() is None
        assert len(record) == 1
    finally:
        loader.library.cache_clear()


def test_a_library_of_another_version_is_refused(
    native: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "ABI_VERSION", 10**6)
    with pytest.raises(OSError, match="build it again"):
        Library(native.path)


@pytest.mark.parametrize("columns", [1, 16, 17, 32, 33, 64, 100, 300])
def test_normals_are_those_of_philox(native: Library, columns: int) -> None:
    key = 0x9E3779B97F4A7C15
    wanted = philox.normals(key, 2, 5, 37, columns)
    for isa in native.isas:
        native.isa = isa
        found = tensors.normals(37, columns, key, 2, 5).numpy()
        assert np.array_equal(found.view(np.int32), wanted.view(np.int32))


@pytest.mark.parametrize("columns", [16, 33, 64, 128, 300])
def test_threads_change_no_normal(native: Library, columns: int) -> None:
    wanted = philox.normals(7, 1, 3, 777, columns)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = tensors.normals(777, columns, 7, 1, 3).numpy()
            assert np.array_equal(found.view(np.int32), wanted.view(np.int32))
    finally:
        torch.set_num_threads(before)


@given(st.integers(0, 3000), st.data())
@pytest.mark.usefixtures("native")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_changed_bit_changes_the_hash(size: int, data: st.DataObject) -> None:
    values = torch.randint(0, 256, (size,), dtype=torch.uint8)
    before = tensors.content_hash([values])
    assert tensors.content_hash([values.clone()]) == before
    if size == 0:
        return
    at, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7))
    values[at] ^= 1 << bit
    assert tensors.content_hash([values]) != before


def changed(weight: Tensor) -> list[Tensor]:
    found = [weight.clone() for _ in range(8)]
    found[0][[3, 5]] = weight[[5, 3]]  # rows
    found[1][:, [0, 64]] = weight[:, [64, 0]]  # columns, the same lane of the hash
    found[2][7] *= -1  # signs of a row
    found[3][0, 1], found[3][0, 65] = -weight[0, 1], -weight[0, 65]  # top bits of one lane
    found[4][10:20] = weight[10:20].flip(0)
    found[5][0, 0] = 0.0
    found[6] = weight.roll(1, 0)
    found[7] = weight.roll(64)
    return found


def test_what_changes_weights_changes_the_hash(native: Library) -> None:
    weight = torch.randn(512, 512)
    hashes = [tensors.content_hash([w])[0] for w in (weight, *changed(weight))]
    assert len(set(hashes)) == len(hashes)
    # Swapping equal and opposite values only moves a sign bit.
    weight[0, 1], weight[1, 1] = 1.0, -1.0
    before = tensors.content_hash([weight])
    weight[0, 1], weight[1, 1] = -1.0, 1.0
    assert tensors.content_hash([weight]) != before
    zero = torch.zeros(1000)
    assert len({tensors.content_hash([zero[:n]])[0] for n in range(1000)}) == 1000


def test_hash_is_the_same_everywhere(native: Library) -> None:
    values = [
        torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (0, 1, 70, 700_000)
    ]
    found = set()
    for isa in native.isas:
        native.isa = isa
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.add(tuple(tensors.content_hash(values)))
    torch.set_num_threads(1)
    assert len(found) == 1
    single = [native.hash(v.data_ptr(), v.nbytes) for v in values]
    assert found == {tuple(single)}


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("fixed", [True, False])
def test_drive_is_the_dequantised_input(fixed: bool) -> None:
    x = torch.randn(7, 50)[:, 3:33]
    x[2] = 0
    full = torch.tensor([1.5])
    unit = full if fixed else torch.where(x.abs().amax(1) > 0, x.abs().amax(1), 1.0)[:, None]
    wanted = (x * (127 / unit.double())).round().clamp(-127, 127) * unit / 127

    found = tensors.drive(x, full if fixed else None, 127)
    torch.testing.assert_close(found, wanted.float())
    assert torch.equal(tensors.drive(x, None, 0), x)


@pytest.mark.usefixtures("native")
def test_gradient_is_masked_and_clipped() -> None:
    gradient, x, mask = torch.randn(9, 41), torch.randn(9, 41), torch.rand(9, 41) > 0.3
    assert torch.equal(tensors.mask_gradient(gradient, mask), gradient * mask)

    wanted = gradient.clone()
    wanted[:, 5:20] *= x[:, 5:20].abs() <= 0.7
    part, out = gradient[:, 5:20], torch.zeros(9, 30)
    tensors.clip_gradient(part, x[:, 5:20], torch.tensor([0.7]), out[:, 3:18])
    assert torch.equal(out[:, 3:18], wanted[:, 5:20])
    assert not out[:, :3].any() and not out[:, 18:].any()
    tensors.clip_gradient(part, x[:, 5:20], torch.tensor([0.7]), part)
    assert torch.equal(gradient, wanted)


@pytest.mark.parametrize("size", [(5, 3), (8, 8), (13, 20), (0, 4), (19, 14)])
@pytest.mark.parametrize("span", [(0, 1), (0, 19), (3, 14)])
def test_maps_are_turned_on_the_way(
    size: tuple[int, int], span: tuple[int, int], native: Library
) -> None:
    torch.manual_seed(3)
    first, last = span
    x, full = torch.randn(2, 19, *size), torch.tensor([0.8])
    part = x[:, first:last].contiguous()
    mask = torch.rand(part.shape) > 0.3
    grad = torch.randn(part.shape).contiguous(memory_format=torch.channels_last)
    driven = tensors.drive(part.flatten(1), full, 127).view(part.shape)
    for name in native.isas:
        native.isa = name
        found = tensors.mask_turned(part, mask)
        assert torch.equal(found, part * mask)
        assert found.permute(0, 2, 3, 1).is_contiguous()
        assert torch.equal(tensors.mask_turned(part, None), part)
        assert torch.equal(tensors.drive_turned(x, first, last, full, 127), driven)
        assert torch.equal(tensors.drive_turned(x, first, last, None, 0), part)
        out = torch.zeros_like(x)
        tensors.clip_turned(grad, x, first, last, full, out)
        assert torch.equal(out[:, first:last], grad * (part.abs() <= 0.8))
        assert not out[:, :first].any() and not out[:, last:].any()
    native.isa = native.isas[-1]


@pytest.mark.usefixtures("native")
def test_maps_that_cannot_be_turned_are_refused() -> None:
    x, full = torch.randn(2, 6, 4, 4), torch.ones(1)
    last = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="contiguous"):
        tensors.mask_turned(last, None)
    with pytest.raises(ValueError, match="layout"):
        tensors.mask_turned(x, last > 0)
    with pytest.raises(ValueError, match="mask"):
        tensors.mask_turned(x, x[:1] > 0)
    with pytest.raises(ValueError, match="channels"):
        tensors.drive_turned(x, 2, 7, full, 127)
    with pytest.raises(ValueError, match="cannot hold"):
        tensors.clip_turned(last, x, 0, 6, full, last)
    with pytest.raises(ValueError, match="is not of channels"):
        tensors.clip_turned(last[:, :3], x, 0, 6, full, x.clone())


@pytest.mark.usefixtures("native")
def test_helpers_refuse_what_they_cannot_read() -> None:
    with pytest.raises(ValueError, match="dense rows"):
        tensors.drive(torch.randn(4, 4).t()[::2], None, 127)
    with pytest.raises(ValueError, match="layout"):
        tensors.mask_gradient(torch.randn(4, 4), torch.ones(4, 4, dtype=torch.bool).t())
    with pytest.raises(ValueError, match="contiguous"):
        tensors.content_hash([torch.randn(4, 4).t()])


def test_layers_run_on_torch_where_that_is_faster(
    native: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANALOGC_ISA", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    weight, spec = torch.randn(4, 6), LayerSpec((0, 6))
    native.isa = "baseline"
    assert isinstance(tiles.store(weight, weight.shape, spec, 1), tuple)
    monkeypatch.setenv("ANALOGC_ISA", "baseline")
    assert isinstance(tiles.store(weight, weight.shape, spec, 1), Packed)
    monkeypatch.delenv("ANALOGC_ISA")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert isinstance(tiles.store(weight, weight.shape, spec, 1), Packed)
