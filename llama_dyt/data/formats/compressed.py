"""The uncompressed bytes of a file, plain or packed (gzip, zstandard), with places in them to go on from."""

from __future__ import annotations

import io
import zlib
from collections import deque
from pathlib import Path

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.record_files import DataFile, Place

COMPRESSIONS = ("", ".gz", ".zst")
_READ_BYTES = 1 << 20
_READ_PACKED_BYTES = 1 << 17  # what it unpacks to, thousands of times as much at worst, has to fit in memory


def is_packed(name: str) -> bool:
    """Whether a file of this name is compressed as a whole."""
    return name.lower().endswith(COMPRESSIONS[1:])


class _PackedReader(io.RawIOBase):
    """Uncompressed bytes of a .zst file of any number of frames, or a .gz file of any number of members.

    It knows where each frame began, so that reading can go on there. Unlike zstandard's own reader, which calls a
    truncated frame a clean end of file, it raises EOFError there.

    Args:
        frame: (offset in the file, offset in the uncompressed bytes) at which a frame begins, to begin there.
    """

    def __init__(self, path: Path, frame: tuple[int, int] = (0, 0)):
        self._new_frame = _gzip_member if path.name.lower().endswith(".gz") else _zstd_frame
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._file.seek(frame[0])
        self._frame = None
        self._packed = b""
        self._plain = memoryview(b"")
        self._num_packed, self._num_plain = frame  # bytes that frames have taken in and given
        self._frames = deque([frame])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._plain:
            if not self._packed:
                self._packed = self._file.read(_READ_PACKED_BYTES)
                if not self._packed:
                    if self._frame is not None:
                        raise EOFError("its last frame is not complete")
                    return 0
            if self._frame is None:
                padding = len(self._packed) - len(self._packed.lstrip(b"\0"))
                if padding:  # tape blocks: both formats allow zeros, or nothing that begins with them, after a frame
                    self._num_packed += padding
                    self._packed = self._packed[padding:]
                    continue
                self._frames.append((self._num_packed, self._num_plain))
                self._frame = self._new_frame()
            plain = self._frame.decompress(self._packed)
            self._num_packed += len(self._packed)
            self._num_plain += len(plain)
            self._packed = b""
            self._plain = memoryview(plain)
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._num_packed -= len(self._packed)
                self._frame = None
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def frame_of(self, offset: int) -> tuple[int, int]:
        """The last frame that began at or before an uncompressed offset; later calls must not ask for earlier ones."""
        while len(self._frames) > 1 and self._frames[1][1] <= offset:
            self._frames.popleft()
        return self._frames[0]

    def close(self) -> None:
        self._file.close()
        super().close()


def _gzip_member():
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd_frame():
    import zstandard

    # The Pile and RedPajama are packed with long windows, which the default limit refuses.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def open_bytes(path: Path, frame: tuple[int, int] = (0, 0)) -> io.BufferedIOBase:
    """Opens a file for reading its uncompressed bytes, from a frame of it on where it is a compressed one."""
    if is_packed(path.name):
        return io.BufferedReader(_PackedReader(path, frame), _READ_BYTES)
    return open(path, "rb", buffering=_READ_BYTES)


def open_at(file: DataFile, place: Place) -> io.BufferedIOBase:
    """The uncompressed bytes from a place on: a plain file seeks, a compressed one is read from that place's frame."""
    stream = open_bytes(file.path, place.frame or (0, 0))
    try:
        if not is_packed(file.path.name):
            stream.seek(place.offset)
            return stream
        left = place.offset - (place.frame or (0, 0))[1]
        while left > 0:
            block = stream.read(min(left, _READ_BYTES))
            if not block:
                raise DataError(
                    f"{file.path}: ends before the place to go on from; restore the file that the run began with",
                    about=file.path,
                )
            left -= len(block)
    except BaseException:
        stream.close()
        raise
    return stream


def frame_at(stream: io.BufferedIOBase, offset: int) -> tuple[int, int] | None:
    """The frame of a compressed file to read a place from; None where that is its first, or it is not compressed."""
    raw = getattr(stream, "raw", None)
    frame = raw.frame_of(offset) if isinstance(raw, _PackedReader) else (0, 0)
    return frame if frame[1] else None
