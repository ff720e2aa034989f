"""What all tests share."""

from __future__ import annotations

import os
import signal

# Several workers with a thread a core each would wait for one another; also for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A suite that runs in the background ignores interrupts, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
