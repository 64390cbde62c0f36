"""Fixtures that every test folder may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from ridgeline.engine.source import ModelSource, resolve_source


@pytest.fixture(scope="session")
def default_model() -> ModelSource:
    """The default model, fetched into the user's cache on first use."""
    return resolve_source(None)


@pytest.fixture(scope="session")
def default_model_path(default_model: ModelSource) -> Path:
    """The default model's GGUF file."""
    return default_model.path
