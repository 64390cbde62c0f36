"""Which kernels are chosen, and that the thread pool's size is checked."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

native = pytest.importorskip("ridgeline.runtime.native._native")

ASK = "from ridgeline.runtime.native import _native; print(_native.tier())"


def ask(tier: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RIDGELINE_ISA": tier}
    return subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True)


def test_portable_is_always_there():
    assert native.available_tiers()[0] == "portable"


@pytest.mark.parametrize("tier", native.available_tiers())
def test_a_tier_can_be_forced(tier):
    assert ask(tier).stdout.strip() == tier


def test_the_best_is_chosen_unasked():
    assert ask("").stdout.strip() == native.available_tiers()[-1]


def test_an_unknown_tier_is_an_error_that_names_it():
    result = ask("mmx")
    assert result.returncode != 0
    assert "RIDGELINE_ISA" in result.stderr and "'mmx'" in result.stderr and "portable" in result.stderr


@pytest.mark.parametrize("num_threads", [0, -1, 5000])
def test_the_number_of_threads_is_checked(num_threads):
    with pytest.raises(ValueError, match="num_threads"):
        native.ThreadPool(num_threads)


def test_a_pool_of_another_tier_is_refused():
    tiers = native.available_tiers()
    if tiers[-1] != "amx":
        pytest.skip("only the amx tier prepares its threads")
    import numpy as np

    with pytest.raises(ValueError, match="pool"):
        native.Matrix(
            native.ThreadPool(1, "portable"), [(np.zeros(256, np.uint8), 0, 1, None)], 64, "int8", tier="amx"
        )
