"""An engine's processes end with the process that started them, however it ends.

vLLM runs its core and workers as processes of their own. A core whose parent is killed (0.29.0) lives on,
with the model in memory and nobody to ask it, so a replica that takes its place may find no room. vLLM loads
the plugins of the group ``vllm.general_plugins`` in each process it starts; this one asks the kernel for a
signal.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

BOUND = "LARGEFORGE_ENGINE_BOUND"
"""Set for engines of ours: the plugin is loaded by whatever uses vLLM in this environment."""
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Be killed when the parent ends. In a process that multiprocessing started for an engine of ours
    only."""
    parent = multiprocessing.parent_process()
    if BOUND not in os.environ or parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent.pid:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
