"""What all tests share."""

from __future__ import annotations

import os

# Several workers with a thread a core each would wait for one another; also for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
