"""One file per verb: parse, fill a dataclass, call. Nothing here decides anything about inference."""
