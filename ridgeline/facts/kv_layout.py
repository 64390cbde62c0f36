"""How keys and values lie in the cache: groups of layers over one pool of equal-byte pages.

A page (a block of the pool) holds `block_size` tokens of `layers_per_page` layers, K and V:

    page = [layers_per_page][K, V][block_size][num_kv_heads][head_dim]      (order is the backend's choice)

and, where numbers are bytes, a scale for each [layers_per_page][K, V][block_size][num_kv_heads].

A model whose layers all see the same positions is one group with all its layers. A model that
mixes full and windowed layers is cut into groups of `layers_per_page` layers of one kind, so that a
window's blocks can be freed while the full layers keep theirs and every group draws equal pages
from the one pool. `layers_per_page` is the smallest count of any kind; where it does not divide
another kind's count, that kind's last group is padded: its pages have unused layer slots
(`padded_layers` counts them). Gemma 3 270M: 3 full and 15 window layers give 1 + 5 groups of 3.

After the hybrid KV cache of vLLM (docs/design/hybrid_kv_cache_manager).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ridgeline.facts.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that share a block table. `layers` are the model's indices, at most `layers_per_page`."""

    kind: Literal["full", "window"]
    layers: tuple[int, ...]
    window: int | None


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The cache of one model. Sizes are counts, `bytes_per_element` is of one K or V number.

    `scale_bytes` is what a token's K or V of one head takes beside its numbers.
    """

    groups: tuple[KvGroup, ...]
    layers_per_page: int
    num_kv_heads: int
    head_dim: int
    bytes_per_element: int
    block_size: int
    scale_bytes: int = 0

    @property
    def layer_bytes_per_token(self) -> int:
        """K and V of one token in one layer."""
        return 2 * self.num_kv_heads * (self.head_dim * self.bytes_per_element + self.scale_bytes)

    @property
    def page_bytes(self) -> int:
        """Bytes of one block of the pool, the same for every group."""
        return self.block_size * self.layers_per_page * self.layer_bytes_per_token

    @property
    def padded_layers(self) -> int:
        """Layer slots that pages carry in vain, over all groups."""
        return sum(self.layers_per_page - len(group.layers) for group in self.groups)

    @property
    def bytes_per_token(self) -> int:
        """What one more token costs while no window has slid yet: every group, padding included."""
        return len(self.groups) * self.layers_per_page * self.layer_bytes_per_token

    @property
    def bytes_per_token_beyond_windows(self) -> int:
        """What one more token costs once every window is full: the full groups only."""
        num_full = sum(group.window is None for group in self.groups)
        return num_full * self.layers_per_page * self.layer_bytes_per_token

    def place(self, layer: int) -> tuple[int, int]:
        """(group, slot in the page) of a model layer."""
        for index, group in enumerate(self.groups):
            if layer in group.layers:
                return index, group.layers.index(layer)
        raise IndexError(f"no group holds layer {layer}")

    def blocks_for(self, num_tokens: int, chunk_tokens: int = 1) -> int:
        """Most blocks that one sequence of `num_tokens` holds at any time, over all groups.

        A window group keeps `window` positions before the oldest token of a step of `chunk_tokens`
        (blocks are let go one position late) and the step itself: window + chunk positions, which
        touch at most one block more than they fill. Never decreases with either argument.
        """
        return sum(self._group_blocks(group, num_tokens, chunk_tokens) for group in self.groups)

    def bytes_for(self, num_tokens: int, chunk_tokens: int = 1) -> int:
        """`blocks_for` in bytes."""
        return self.blocks_for(num_tokens, chunk_tokens) * self.page_bytes

    def _group_blocks(self, group: KvGroup, num_tokens: int, chunk_tokens: int) -> int:
        everything = -(-num_tokens // self.block_size)
        if group.window is None:
            return everything
        held = group.window + max(chunk_tokens, 1)
        return min(everything, -(-held // self.block_size) + 1)


def kv_layout(spec: ModelSpec, block_size: int, bytes_per_element: int, scale_bytes: int = 0) -> KvLayout:
    """The KV layout of `spec` with blocks of `block_size` tokens.

    Raises ValueError when `block_size` or `bytes_per_element` is not positive.
    """
    if block_size < 1 or bytes_per_element < 1:
        raise ValueError(
            f"block_size {block_size} and bytes_per_element {bytes_per_element} must be positive"
        )
    kinds: dict[int | None, list[int]] = {}
    for index, layer in enumerate(spec.layers):
        kinds.setdefault(layer.window, []).append(index)
    layers_per_page = min(len(layers) for layers in kinds.values())
    groups = []
    for window in sorted(kinds, key=lambda w: (w is not None, w or 0)):
        layers = kinds[window]
        for start in range(0, len(layers), layers_per_page):
            members = tuple(layers[start : start + layers_per_page])
            groups.append(KvGroup("full" if window is None else "window", members, window))
    return KvLayout(
        tuple(groups),
        layers_per_page,
        spec.num_kv_heads,
        spec.head_dim,
        bytes_per_element,
        block_size,
        scale_bytes,
    )
