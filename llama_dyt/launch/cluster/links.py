"""What lies between machines: whether a port can be had and reached, round trips, bandwidth, an all-reduce."""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

_CHUNK = bytes(1 << 20)
_ROUND_TRIPS = 30
_TIMES = 5


class Listener:
    """A port of this machine that answers others until it is closed: bytes back for a ping, a byte for megabytes."""

    def __init__(self, port: int) -> None:
        """`port`: 0 for a free one. Raises OSError where it cannot be had."""
        self._server = socket.create_server(("", port), family=socket.AF_INET, backlog=256)
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):  # of the close
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=_answer, args=(connection,), daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._server.close()


def _answer(connection: socket.socket) -> None:
    with connection, suppress(OSError, ValueError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while ask := connection.recv(1):
            if ask == b"p":
                connection.sendall(b"p")
                continue
            left = int(_receive(connection, 12))
            while left > 0:
                got = len(connection.recv(min(left, len(_CHUNK))))
                if got == 0:
                    return
                left -= got
            connection.sendall(b"d")


def measure(host: str, port: int, megabytes: int, timeout: float) -> dict[str, Any]:
    """Seconds of a round trip to a `Listener`, and bits a second to it; or the "error" why it cannot be reached."""
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trips = []
            for _ in range(_ROUND_TRIPS):
                start = time.perf_counter()
                connection.sendall(b"p")
                _receive(connection, 1)
                trips.append(time.perf_counter() - start)
            if megabytes == 0:
                return {"seconds": statistics.median(trips), "bits_per_second": None}
            start = time.perf_counter()
            connection.sendall(b"b" + b"%12d" % (megabytes * len(_CHUNK)))
            for _ in range(megabytes):
                connection.sendall(_CHUNK)
            _receive(connection, 1)
            bits = 8 * megabytes * len(_CHUNK) / (time.perf_counter() - start)
            return {"seconds": statistics.median(trips), "bits_per_second": bits}
    except OSError as error:
        return {"error": error.strerror or str(error) or type(error).__name__}


def _receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        more = connection.recv(count - len(received))
        if not more:
            raise ConnectionResetError("the other side closed the connection")
        received += more
    return received


def all_reduce(rank: int, world: int, address: str, port: int, megabytes: int, timeout: float) -> dict[str, Any]:
    """Seconds of an all-reduce of so many megabytes over all machines, one process each; nccl where there are GPUs."""
    try:
        import torch
        import torch.distributed as dist

        on_gpu = torch.cuda.is_available()
        backend, device = ("nccl", "cuda:0") if on_gpu else ("gloo", "cpu")
        limit = timedelta(seconds=timeout)
        store = dist.TCPStore(address, port, world, is_master=rank == 0, timeout=limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
        values = torch.ones(megabytes << 18, device=device)
        seconds = []
        for _ in range(_TIMES):
            values.fill_(1.0)
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(values)
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        right = bool((values == world).all())
        dist.barrier()
        dist.destroy_process_group()
        if not right:
            return {"error": "the sum is wrong"}
        bus = 8 * megabytes * (1 << 20) * 2 * (world - 1) / world / min(seconds)
        return {"seconds": min(seconds), "bits_per_second": bus, "backend": backend, "pid": os.getpid()}
    except Exception as error:  # whatever a network or a library has: it is the finding
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"}
