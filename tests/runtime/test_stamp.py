from __future__ import annotations

import os

import pytest
import torch

from analogc.runtime import stamp as stamp_module
from analogc.runtime.fingerprint import device_fingerprint, fingerprint
from analogc.runtime.stamp import Stamp
from analogc.runtime.watch import PageWatch, can_be_watched, page_watch

watched_here = pytest.mark.skipif(page_watch() is None, reason="needs Linux 6.7")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("numel", [0, 1, 7, 1000, 262_144, 300_001])
def test_fingerprint_depends_on_content_only(dtype: torch.dtype, numel: int) -> None:
    x = (torch.randn(numel) * 50).to(dtype)
    assert fingerprint(x) == fingerprint(x.clone())
    if numel:
        y = x.clone()
        y[numel // 2] += 1
        assert fingerprint(x) != fingerprint(y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (512, 512), (1024, 768)])
def test_fingerprint_sees_what_sums_and_xors_miss(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    x = torch.randn(shape).to(dtype)
    seen = {
        fingerprint(x), fingerprint(-x), fingerprint(x.flip(0)), fingerprint(x.flip(1)),
        fingerprint(x.roll(1, 0)), fingerprint(x.roll(32, 0)), fingerprint(x * 2),
        fingerprint(x[torch.randperm(shape[0])]),
    }  # fmt: skip
    assert len(seen) == 8


def test_fingerprint_of_a_view_is_that_of_its_values() -> None:
    x = torch.randn(300, 400)
    assert fingerprint(x.T) == fingerprint(x.T.contiguous())
    assert fingerprint(x[::2, ::3]) == fingerprint(x[::2, ::3].contiguous())


def test_single_bit_flips_change_the_fingerprint() -> None:
    x = torch.randn(70_000)
    base, bits = fingerprint(x), x.view(torch.int32)
    for position in range(0, 70_000, 1777):
        for bit in (0, 7, 22, 30):
            bits[position] ^= 1 << bit
            assert fingerprint(x) != base
            bits[position] ^= 1 << bit
    assert fingerprint(x) == base


# -- on devices, by torch operations --------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.complex64]
)
def test_device_fingerprint_is_a_function_of_the_values(dtype: torch.dtype) -> None:
    x = (torch.randn(60, 70) * 50).to(dtype)
    assert device_fingerprint(x) == device_fingerprint(x.clone())
    assert device_fingerprint(x.T) == device_fingerprint(x.T.contiguous())
    changed = x.clone()
    changed[31, 5] += 1
    assert device_fingerprint(changed) != device_fingerprint(x)


def test_device_fingerprint_tells_what_sums_and_xors_do_not() -> None:
    x = torch.randn(400, 50)
    seen = {device_fingerprint(x)}
    changes = [-x, x.flip(0), x.roll(1, 1), torch.where(x > 0, -x, x), x[:, :49], x * 2]
    swapped = x.clone()
    swapped[[3, 7]] = x[[7, 3]]
    signs = x.clone()
    signs[5, :2] *= -1
    for other in (*changes, swapped, signs):
        seen.add(device_fingerprint(other))
    assert len(seen) == 9


def test_device_fingerprint_notices_single_bits() -> None:
    x = torch.randn(3000)
    base, bits = device_fingerprint(x), x.view(torch.int32)
    for position in range(0, 3000, 97):
        for bit in (0, 7, 22, 30):
            bits[position] ^= 1 << bit
            assert device_fingerprint(x) != base
            bits[position] ^= 1 << bit


@watched_here
def test_the_kernel_reports_writes_by_any_route() -> None:
    watch = page_watch()
    assert watch is not None
    x = torch.randn(500, 500)
    assert watch.protect(x)
    look = watch.look_at(x)
    assert look.sees_no_write()
    float(x.sum())
    assert look.sees_no_write()
    for write in (
        lambda: x.data.add_(1),
        lambda: x.numpy().__setitem__((250, 0), 1.0),
        lambda: torch.utils.dlpack.from_dlpack(x).mul_(2.0),
    ):
        write()
        assert not look.sees_no_write()
        assert watch.protect(x)
        look = watch.look_at(x)
        assert look.sees_no_write()


@watched_here
def test_the_bytes_outside_whole_pages_are_looked_at() -> None:
    watch = page_watch()
    assert watch is not None
    whole = torch.randn(50_000)
    for x in (whole, whole[3:-5], whole[1000:]):
        for place in (0, -1):
            assert watch.protect(x)
            look = watch.look_at(x)
            assert look.sees_no_write()
            x[place] += 1
            assert not look.sees_no_write()


@watched_here
def test_writes_beside_a_tensor_in_its_first_and_last_page_are_not_its_own() -> None:
    watch = page_watch()
    assert watch is not None
    whole = torch.randn(50_000)
    x = whole[1000:-1000]
    whole[900:1100] *= 1  # populated
    assert watch.protect(x)
    look = watch.look_at(x)
    whole[999] += 1
    whole[-1000] += 1
    assert look.sees_no_write()


@watched_here
@pytest.mark.parametrize("part", [slice(None), slice(0, 250), slice(100, 400)])
def test_stamps_of_the_same_memory_do_not_hide_writes_from_each_other(part: slice) -> None:
    x = torch.randn(500, 500)
    stamps = [(Stamp(x), x), (Stamp(x[part]), x[part])]
    for _ in range(3):
        assert all(stamp.matches(tensor) for stamp, tensor in stamps)
    x.numpy()[200] += 1
    for stamp, tensor in stamps * 2:
        assert not stamp.matches(tensor)


@watched_here
def test_system_calls_that_write_are_reported() -> None:
    watch = page_watch()
    assert watch is not None
    x = torch.randn(500, 500)
    assert watch.protect(x)
    look = watch.look_at(x)
    with open("/dev/zero", "rb", buffering=0) as zeros:
        zeros.readinto(x.numpy().data.cast("B")[500_000:500_004])
    assert not look.sees_no_write() and float(x[250, 0]) == 0.0


@watched_here
def test_a_forked_child_does_not_trust_its_parents_watch() -> None:
    watch = page_watch()
    assert watch is not None
    x = torch.randn(500, 500)
    assert watch.protect(x)
    look = watch.look_at(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if page_watch() is not watch and not look.sees_no_write() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_memory_of_other_processes_is_not_watched() -> None:
    assert not can_be_watched(torch.randn(500, 500).share_memory_())
    assert not can_be_watched(torch.empty(0))


@pytest.mark.parametrize("size", [10, 400])
@pytest.mark.parametrize("watch", [True, False], ids=["watch", "no watch"])
def test_a_stamp_notices_writes_with_and_without_the_kernels_help(
    size: int, watch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not watch:
        monkeypatch.setattr(stamp_module, "page_watch", lambda: None)
    x = torch.randn(size, size)
    stamp = Stamp(x)
    assert all(stamp.matches(x) for _ in range(3))
    x.numpy()[3, 4] += 1
    assert not stamp.matches(x)
    assert not stamp.matches(x)
    x.numpy()[3, 4] -= 1
    again = Stamp(x)
    x.data.neg_().neg_()
    assert again.matches(x)


def test_a_stamp_knows_the_same_content_elsewhere() -> None:
    x = torch.randn(200, 200)
    stamp = Stamp(x)
    assert not stamp.matches(x.clone())
    assert Stamp(x.clone()).same_content(stamp)
    assert not any(Stamp(y).same_content(stamp) for y in (x + 1, x.double(), x.view(-1)))


def test_a_system_without_write_tracking_has_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PageWatch) -> None:
        raise OSError("no userfaultfd")

    from analogc.runtime import watch as watch_module

    monkeypatch.setattr(PageWatch, "__init__", refuse)
    assert watch_module._watch_of(-1) is None
