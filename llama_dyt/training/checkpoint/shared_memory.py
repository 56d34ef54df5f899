"""Memory that a process shares with one it has started, by its descriptor: what an asynchronous save copies into.

A memfd and not /dev/shm, which is 64 MB in many containers. All of it is there, and touched, from the start: the first
touch of a page takes four times as long as copying into one.
"""

from __future__ import annotations

import mmap
import os


class SharedMemory:
    """Some bytes, gone with the last process that has them.

    Attributes:
        descriptor: which a child is to inherit.
        view: the bytes.
    """

    def __init__(self, size: int) -> None:
        """Raises OSError where the machine has no room for them."""
        self.descriptor = os.memfd_create("llama_dyt-checkpoint")
        self.size = max(size, 1)
        try:
            os.posix_fallocate(self.descriptor, 0, self.size)
            self._map = mmap.mmap(self.descriptor, self.size)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.view = memoryview(self._map)
        for begin in range(0, self.size, mmap.PAGESIZE):
            self._map[begin] = 0

    @classmethod
    def inherited(cls, descriptor: int, size: int) -> SharedMemory:
        """That of the process which started this one; read only."""
        self = cls.__new__(cls)
        self.descriptor, self.size = descriptor, max(size, 1)
        self._map = mmap.mmap(descriptor, self.size, prot=mmap.PROT_READ)
        self.view = memoryview(self._map)
        return self
