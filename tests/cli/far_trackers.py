"""Trackers that ask a server with no limit of their own on how long; what a run names by `--import far_trackers`.

FAR_SERVERS: name=address,name=address… of their servers.
"""

from __future__ import annotations

import json
import os
import urllib.request

from llama_dyt.training.trackers.tracker import TRACKERS, Tracker


class Far(Tracker):
    """One that knows no better than to wait."""

    in_background = True

    def open(self) -> None:
        self.address = dict(pair.split("=") for pair in os.environ["FAR_SERVERS"].split(","))[self.name]
        self.ask({"step": 0})

    def log(self, record: dict) -> None:
        self.ask({"step": record["step"]})

    def ask(self, told: dict) -> None:
        urllib.request.urlopen(self.address, json.dumps(told).encode()).read()

    def close(self) -> None:
        self.ask({"step": -1})


for name in ("far_silent", "far_full", "far_refused", "far_dying"):
    TRACKERS.register(type(name, (Far,), {"name": name}))
