"""What all tests share."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator

import pytest

# Several workers with a thread a core each would wait for one another; also for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A suite that runs in the background ignores interrupts, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files of this process may not grow beyond 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)
