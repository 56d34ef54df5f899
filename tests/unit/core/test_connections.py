"""A connection whose other end is silent is given up in time; the lost machines of tests/cluster show it at work."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from llama_dyt.core.connections import connections, give_up_after

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")


def test_a_connection_is_found_and_gets_its_limits():
    before = connections()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert connections() - before == {server.fileno(), client.fileno()}
        give_up_after(client.fileno(), 8)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        names = ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        set_to = [client.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
        assert set_to == [8000, 2, 2, 3]
    assert connections() == before


def test_what_is_no_connection_is_left_alone():
    give_up_after(os.open(os.devnull, os.O_RDONLY), 8)
    with socket.socketpair()[0] as local:
        give_up_after(local.fileno(), 8)
        assert local.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
