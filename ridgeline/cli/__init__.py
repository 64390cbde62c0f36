"""One file per verb: parse, build a dataclass, call."""
