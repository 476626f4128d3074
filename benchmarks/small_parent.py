"""Runs a command and writes its exit code, seconds and peak resident set in kB to a file: FILE COMMAND ...

A process starts with the peak of the one that started it, so that the peak of a command must be taken by a parent that
is small, unlike one with torch in it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[2:])
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    Path(sys.argv[1]).write_text(json.dumps([process.returncode, taken, usage.ru_maxrss]))
