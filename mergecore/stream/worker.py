"""A worker process: takes jobs from a connection and merges them, one after the other.

One process per core, since the calls on cache-sized tiles are so short that threads would spend their time handing the
interpreter lock to each other.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from mergecore.errors import MergeError
from mergecore.methods import plugins
from mergecore.stream.job import Job, Setup
from mergecore.stream.merger import Merger

_REPORT_EVERY_S = 0.1


def main(descriptors: Sequence[int]) -> None:
    """Serve one connection per descriptor, each in a process of its own.

    The processes are forked here, after torch is loaded: that is faster than loading it in each, and its memory is
    shared. At this point the process has one thread, so forking is safe.
    """
    torch.set_num_threads(1)
    gc.freeze()  # what is loaded stays: it is never searched, and its memory stays shared
    gc.enable()
    connections = [Connection(descriptor) for descriptor in descriptors]
    mine = connections[0]
    for connection in connections[1:]:
        if os.fork() == 0:
            mine = connection
            break
    for connection in connections:
        if connection is not mine:
            connection.close()
    serve(mine)
    sys.stdout.flush()
    os._exit(0)  # without the clean-up of a parent that was forked


def serve(connection: Connection) -> None:
    """Do the batches of jobs of one run after another, each run begun by its `Setup`.

    Answers ("progress", read, written), ("done", outcomes), ("refused", problems) or ("crashed", traceback).
    """
    try:
        merger: Merger | None = None
        on_progress = throttled(connection)
        while True:
            message: Setup | list[Job] = connection.recv()
            name = ""
            try:
                if isinstance(message, Setup):
                    if merger is not None:
                        merger.close()
                    setup, merger = message, None
                    plugins.load(setup.plugins)  # the jobs that follow hold objects of their classes
                    continue
                merger = merger or Merger(setup)
                outcomes = []
                for job in message:
                    name = f"{job.tensor.name}: "
                    outcomes.append(replace(merger.run(job, on_progress), job=None))  # the parent knows it
                connection.send(("done", outcomes))
            except MergeError as error:
                connection.send(("refused", type(error), error.problems))
            except Exception:  # a defect of ours: the parent raises it, with this traceback
                connection.send(("crashed", name + traceback.format_exc()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone


def throttled(connection: Connection) -> Callable[[int, int], None]:
    """Sends progress, at most every tenth of a second."""
    sent_at = time.monotonic()
    read = written = 0

    def report(more_read: int, more_written: int) -> None:
        nonlocal sent_at, read, written
        read += more_read
        written += more_written
        now = time.monotonic()
        if now - sent_at > _REPORT_EVERY_S:
            connection.send(("progress", read, written))
            sent_at, read, written = now, 0, 0

    return report
