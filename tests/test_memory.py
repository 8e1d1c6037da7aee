"""Memory that was kept for speed goes back to the system when it is asked for."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os
from saelab.memory import give_back_freed_memory, keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

keep_freed_memory()
between = []
large = []
for _ in range(40):
    large.append(bytes(5_000_000))
    between.append(bytes(5_000))  # what is left here and there keeps the rest from being trimmed
before = resident()
large.clear()
kept = resident()
give_back_freed_memory()
print(before, kept, resident(), len(between))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's functions")
def test_what_was_kept_is_given_back():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    before, kept, after, _ = map(float, done.stdout.split())
    assert kept > before - 20, "freed memory is not kept"
    assert after < before - 150
