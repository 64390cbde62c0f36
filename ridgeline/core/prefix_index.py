"""Finds the blocks that already hold a prefix.

A full block is named by a chain of hashes, so equal names mean equal whole prefixes:

    root = H(salt)      name_0 = H(root | tokens of block 0)      name_i = H(name_{i-1} | tokens of block i)

H is SHA-256: a collision would show one user another user's context, so nothing weaker will do. The salt
keeps tenants apart, who could otherwise learn from a faster answer that somebody had asked the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256


def root_name(salt: bytes) -> bytes:
    """The parent of every first block under `salt`, 32 bytes."""
    return sha256(b"prefix root\0" + salt).digest()


def extend_names(
    names: list[bytes], root: bytes, tokens: Sequence[int], block_size: int, num_blocks: int
) -> None:
    """Append to `names` until it names the first `num_blocks` full blocks of `tokens`, in place."""
    parent = names[-1] if names else root
    for index in range(len(names), num_blocks):
        block = array("q", tokens[index * block_size : (index + 1) * block_size])
        parent = sha256(parent + block.tobytes()).digest()
        names.append(parent)


class PrefixIndex:
    """Block by (cache group, name), and back. A name has one block per group; the first to arrive stays."""

    def __init__(self, num_groups: int) -> None:
        self._blocks: list[dict[bytes, int]] = [{} for _ in range(num_groups)]
        self._keys: dict[int, tuple[int, bytes]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, group: int, name: bytes) -> int | None:
        """The block that holds this content for this group, or None."""
        return self._blocks[group].get(name)

    def insert(self, group: int, name: bytes, block: int) -> bool:
        """Publish a block. False when another block already has the name (this one stays private)."""
        if name in self._blocks[group] or block in self._keys:
            return False
        self._blocks[group][name] = block
        self._keys[block] = (group, name)
        return True

    def holds(self, block: int) -> bool:
        """Whether the block is published."""
        return block in self._keys

    def forget(self, block: int) -> None:
        """Withdraw a published block, because its memory is about to be reused."""
        group, name = self._keys.pop(block)
        del self._blocks[group][name]
