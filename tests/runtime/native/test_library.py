"""Finding and loading the library; noise, hashes and helpers of the backward pass."""

from __future__ import annotations

import math
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
from analogc.runtime.native import gradients, loader, tensors
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

    found = gradients.drive(x, full if fixed else None, 127)
    torch.testing.assert_close(found, wanted.float())
    assert torch.equal(gradients.drive(x, None, 0), x)


@pytest.mark.usefixtures("native")
def test_gradient_is_masked_and_clipped() -> None:
    gradient, x, mask = torch.randn(9, 41), torch.randn(9, 41), torch.rand(9, 41) > 0.3
    assert torch.equal(gradients.mask_gradient(gradient, mask), gradient * mask)

    wanted = gradient.clone()
    wanted[:, 5:20] *= x[:, 5:20].abs() <= 0.7
    part, out = gradient[:, 5:20], torch.zeros(9, 30)
    gradients.clip_gradient(part, x[:, 5:20], torch.tensor([0.7]), out[:, 3:18])
    assert torch.equal(out[:, 3:18], wanted[:, 5:20])
    assert not out[:, :3].any() and not out[:, 18:].any()
    gradients.clip_gradient(part, x[:, 5:20], torch.tensor([0.7]), part)
    assert torch.equal(gradient, wanted)


@pytest.mark.parametrize("size", [(5, 3), (8, 8), (13, 20), (0, 4), (19, 14)])
@pytest.mark.parametrize("channels", [1, 8, 11, 19])
def test_maps_are_turned_on_the_way(size: tuple[int, int], channels: int, native: Library) -> None:
    torch.manual_seed(3)
    x, full, alpha = torch.randn(2, channels, *size), torch.tensor([0.8]), torch.rand(channels)
    packed = Packed.pack(torch.randn(channels, channels), (0, channels), (1, 1), 1, 8)
    gradient = torch.randn_like(x)
    mask = torch.rand(x.shape) > 0.3
    driven = gradients.drive(x.flatten(1), full, 127).view(x.shape)
    last = gradient.contiguous(memory_format=torch.channels_last)
    for name in native.isas:
        native.isa = name

        def prepare(mask: Tensor | None, full: Tensor | None) -> tuple[Tensor, ...]:
            levels = 0 if full is None else 127
            found = gradients.prepare(
                gradient, x, packed, alpha, mask, full, levels, True, True, True
            )
            assert found[2] is not None and torch.equal(found[2], packed.unpack_scaled(alpha))
            assert all(part.permute(0, 2, 3, 1).is_contiguous() for part in found[:2])
            return found[0], found[1]

        for ours, wanted in zip(prepare(mask, full), (gradient * mask, driven), strict=True):
            assert torch.equal(ours, wanted)
        for ours, wanted in zip(prepare(None, None), (gradient, x), strict=True):
            assert torch.equal(ours, wanted)
        assert torch.equal(gradients.clip_turned(last, x, full), gradient * (x.abs() <= 0.8))


@pytest.mark.usefixtures("native")
def test_maps_that_cannot_be_turned_are_refused() -> None:
    x, full = torch.randn(2, 6, 4, 4), torch.ones(1)
    last = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="contiguous"):
        gradients.clip_turned(last, last, full)
    with pytest.raises(ValueError, match="gradient"):
        gradients.clip_turned(last[:, :3], x, full)
    with pytest.raises(ValueError, match="gradient"):
        gradients.clip_turned(x, x, full)


@pytest.mark.usefixtures("native")
def test_parts_of_rows_have_ranges_of_their_own() -> None:
    x, ranges = torch.randn(5, 40), torch.tensor([0.5, 2.0])
    parts, bounds = gradients.parts_of((0, 13, 40))
    found = gradients.drive(x, ranges, 127, parts)
    for span, full in ((slice(0, 13), ranges[:1]), (slice(13, 40), ranges[1:])):
        assert torch.equal(found[:, span], gradients.drive(x[:, span], full, 127))
    dynamic = gradients.drive(x, None, 127, parts)
    assert torch.equal(dynamic[:, 13:], gradients.drive(x[:, 13:], None, 127))

    limits = torch.where(torch.arange(40) < 13, 0.5, 2.0)
    wanted = found * (x.abs() <= limits)
    assert torch.equal(gradients.clip_gradient(found, x, ranges, found.clone(), bounds), wanted)
    assert torch.equal(gradients.clip_gradient(found, x, ranges, found, bounds), wanted)
    with pytest.raises(ValueError, match="ranges"):
        gradients.drive(x, ranges, 127)
    with pytest.raises(ValueError, match="ranges"):
        gradients.clip_gradient(found, x, ranges, found)


@pytest.mark.usefixtures("native")
def test_a_gradient_clipped_in_place_is_that_of_a_copy() -> None:
    gradient, x = torch.randn(3, 1000), torch.randn(3, 1000)
    x[0, 70], x[1, 999] = math.nan, math.inf
    full = torch.tensor([2.9])
    wanted = gradients.clip_gradient(gradient, x, full, torch.empty_like(gradient))
    assert torch.equal(wanted, gradient * (x.abs() <= 2.9))
    assert torch.equal(gradients.clip_gradient(gradient, x, full, gradient), wanted)


@pytest.mark.usefixtures("native")
def test_helpers_refuse_what_they_cannot_read() -> None:
    with pytest.raises(ValueError, match="dense rows"):
        gradients.drive(torch.randn(4, 4).t()[::2], None, 127)
    with pytest.raises(ValueError, match="layout"):
        gradients.mask_gradient(torch.randn(4, 4), torch.ones(4, 4, dtype=torch.bool).t())
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
