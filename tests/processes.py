"""Processes: the memory of this one, and a child of it."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path


def resident() -> int:
    """Bytes of memory that this process holds; Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_in_child(check: Callable[[], None]) -> None:
    """Make a check in a forked child, which ends with it, or within a minute."""
    child = os.fork()
    if not child:
        signal.alarm(60)
        code = 1
        try:
            check()
            code = 0
        except BaseException:  # which would take the child on to the next tests
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
