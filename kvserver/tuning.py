"""How this process shares the interpreter between threads, and how often it collects garbage."""

import gc
import sys
from typing import Final

SWITCH_INTERVAL_S: Final = 0.0001
"""The raft thread gives the GIL up around every LMDB call; at Python's default of 5 ms it would
wait that long for a busy main thread to give it back."""

GC_THRESHOLDS: Final = (20_000, 20, 20)
"""Little here is garbage in cycles; the default looks for some every 700 objects."""


def prefer_throughput() -> None:
    """Let the threads of this process, started after this, hand work to one another cheaply."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # start-up objects live for ever: looking at them again in every collection is for nothing
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    # Not SCHED_BATCH: on a quiet machine 30 % more puts, but beside other busy processes a quarter
    # to a half of them, and a failover would wait for those processes too.
