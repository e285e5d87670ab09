"""Run as a script: becomes the command given, which the kernel kills when the bench ends.

A node may outlive neither a bench that was killed nor a terminal that was closed. The pid stays the
same, so signals sent to it reach the command itself. Where there is no prctl, only the bench's own
cleaning up ends the nodes.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Bind this process to `parent`, then become `command`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the kernel was told
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
