"""Where downloaded models and converted tokenizers are kept on disk."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$RIDGELINE_CACHE`, else `$XDG_CACHE_HOME/ridgeline`, else `~/.cache/ridgeline`."""
    own = os.environ.get("RIDGELINE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "ridgeline"
