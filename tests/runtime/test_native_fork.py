"""The thread pool after a fork: the child has none of its workers, and must neither await nor join them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ridgeline.engine.hardware_probe import probe_native

pytestmark = pytest.mark.skipif(
    not probe_native().available or sys.platform == "win32", reason="needs the compiled kernels, and fork"
)

FORKS = """
import os
import numpy as np
from ridgeline.runtime.native import _native

pool = _native.ThreadPool(3)
x = np.ones(64, np.float32)
y = np.zeros(64, np.float32)
_native.apply(pool, "exp", x, y)
child = os.fork()
if child == 0:
    try:
        _native.apply(pool, "exp", x, y)
    except RuntimeError as error:
        assert "fork" in str(error), error
        del pool, error  # must not join threads that are not there
        os._exit(7)
    os._exit(1)
status = os.waitpid(child, 0)[1]
_native.apply(pool, "exp", x, y)
print(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_is_told_and_can_let_go() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=20)
    assert (done.stdout.strip(), done.stderr) == ("7", "")
