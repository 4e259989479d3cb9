"""Becomes another program that dies with its parent: python guard.py PARENT PROGRAM ARGUMENTS…

A script of its own: it may import nothing of Engineworks, whose imports would delay the program.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # it died before the call
        sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])
