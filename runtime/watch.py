"""Ask the kernel whether memory was written: userfaultfd in asynchronous write-protect mode.

The pages of a tensor are write-protected. The first write to a page, by whatever route (a NumPy
alias, ``.data``, a system call), clears its protection without a signal or a visible fault, and
PAGEMAP_SCAN tells which pages were written. One call for each tensor, about 3 us, whatever its
size. Needs Linux 6.7 or later on x86-64 or arm64 and private memory of this process; elsewhere
``protect`` says no and the caller compares fingerprints.

Sources: Linux Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst, section PAGEMAP_SCAN.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import struct
import sys
import threading
import weakref

from torch import Tensor

from .native.loader import library

_SYSCALL = {"x86_64": 323, "aarch64": 282}
_UFFD_USER_MODE_ONLY = 1
_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_REGISTER_MODE_WP = 1 << 1
_FEATURE_WP_UNPOPULATED = 1 << 13
_FEATURE_WP_ASYNC = 1 << 15
_PAGEMAP_SCAN = 0xC0606610
_SCAN_WP_MATCHING = 1 << 0
_SCAN_CHECK_WPASYNC = 1 << 1
_PAGE_IS_WRITTEN = 1 << 1


class PageWatch:
    """Write tracking for the memory of this process."""

    def __init__(self) -> None:
        import fcntl

        self._ioctl = fcntl.ioctl
        libc = ctypes.CDLL(None, use_errno=True)
        number = _SYSCALL[platform.machine()]
        flags = os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY
        self._uffd: int = libc.syscall(number, flags)
        if self._uffd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd is not to be had")
        features = _FEATURE_WP_ASYNC | _FEATURE_WP_UNPOPULATED
        self._ioctl(self._uffd, _UFFDIO_API, bytearray(struct.pack("QQQ", _UFFD_API, features, 0)))
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        # Room for the one region that a scan reports; more is not asked for.
        self._region = ctypes.create_string_buffer(24)
        self._looks: weakref.WeakSet[Look] = weakref.WeakSet()
        self._lock = threading.Lock()

    def protect(self, tensor: Tensor) -> bool:
        """Watch the whole pages of ``tensor`` from now on; False if they cannot be.

        The bytes outside them share their pages with other data; ``look_at`` compares them.
        """
        start, stop = _pages(tensor)
        if start >= stop:
            return False
        try:
            request = struct.pack("QQQQ", start, stop - start, _REGISTER_MODE_WP, 0)
            self._ioctl(self._uffd, _UFFDIO_REGISTER, bytearray(request))
            if self._scan(start, stop, 0)[0]:
                self._end_looks(start, stop)
            at = start
            while at < stop:
                found, at = self._scan(at, stop, _SCAN_WP_MATCHING)
                if found:
                    self._end_looks(start, stop)
        except OSError:
            return False
        return True

    def look_at(self, tensor: Tensor) -> Look:
        """What tells whether ``tensor`` was written since ``protect``; the edges count from now."""
        look = Look(self, tensor)
        with self._lock:
            self._looks.add(look)
        return look

    def _end_looks(self, start: int, stop: int) -> None:
        # To protect pages again forgets that they were written, and others may look at them: the
        # tiles of another compiled model, or of the other mode's graph.
        with self._lock:
            for look in self._looks:
                if look.start < stop and start < look.stop:
                    look.ended = True

    def _argument(self, start: int, stop: int, flags: int) -> bytearray:
        return bytearray(
            struct.pack(
                "12Q", 96, flags | _SCAN_CHECK_WPASYNC, start, stop, 0,
                ctypes.addressof(self._region), 1, 0, 0, _PAGE_IS_WRITTEN, 0, _PAGE_IS_WRITTEN,
            )
        )  # fmt: skip

    def _scan(self, start: int, stop: int, flags: int) -> tuple[int, int]:
        """Number of regions with written pages (0 or 1), and where the scan ended."""
        argument = self._argument(start, stop, flags)
        found = self._ioctl(self._pagemap, _PAGEMAP_SCAN, argument)
        return found, struct.unpack_from("Q", argument, 32)[0]


class Look:
    """Asks whether the memory of one tensor was written, in about 3 us."""

    __slots__ = (
        "__weakref__", "_argument", "_edges", "_head", "_tail", "_watch", "ended", "start", "stop",
    )  # fmt: skip

    def __init__(self, watch: PageWatch, tensor: Tensor) -> None:
        self.start, self.stop = _pages(tensor)
        self.ended = False
        first = tensor.data_ptr()
        last = first + _span(tensor)
        self._watch = watch
        self._argument = watch._argument(self.start, self.stop, 0)
        self._head, self._tail = (first, self.start - first), (self.stop, last - self.stop)
        self._edges = self._read_edges()

    def sees_no_write(self) -> bool:
        """True if nothing was written since; the memory must still be there."""
        watch = self._watch
        if self.ended or page_watch() is not watch:  # a forked child has another
            return False
        try:
            if watch._ioctl(watch._pagemap, _PAGEMAP_SCAN, self._argument) > 0:
                return False
        except OSError:
            return False
        return self._read_edges() == self._edges

    def _read_edges(self) -> tuple[bytes | int, bytes | int]:
        # The pages at both ends hold other data too, so the tensor's own bytes there are compared.
        native = library()
        read = ctypes.string_at if native is None else native.hash
        return read(*self._head), read(*self._tail)


def _pages(tensor: Tensor) -> tuple[int, int]:
    """First and end address of the pages that lie wholly inside the tensor's memory."""
    size = mmap.PAGESIZE
    start = tensor.data_ptr()
    stop = start + _span(tensor)
    return -(-start // size) * size, stop // size * size


def _span(tensor: Tensor) -> int:
    """Bytes from the first to behind the last element."""
    if tensor.numel() == 0:
        return 0
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()


@functools.cache
def _watch_of(process: int) -> PageWatch | None:
    if sys.platform != "linux" or platform.machine() not in _SYSCALL:
        return None
    try:
        return PageWatch()
    except OSError:
        return None


def page_watch() -> PageWatch | None:
    """The watch of this process, or None where the system has none."""
    # A forked child has its parent's memory but not its write tracking.
    return _watch_of(os.getpid())


def can_be_watched(tensor: Tensor) -> bool:
    """True for memory that only this process can write: other processes' writes are not seen."""
    return (
        tensor.device.type == "cpu"
        and tensor.numel() > 0
        and not tensor.is_shared()
        and page_watch() is not None
    )
