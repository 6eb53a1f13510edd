"""Damage to files, decided by a random generator: what disks, networks and editors do to bytes."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from mixer_dist.data.tar_headers import BLOCK

STRANGE_VALUES = (
    None, True, 0, -1, 1, 2**63, 2**70, 1.5, "", "x", "../x", "/", "x://y", [], {}, "0" * 64,
    "shard-000001.tar", "shard-000001.idx", "manifest.json",
)  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        _damage(changed, rng)
    return bytes(changed)


def _damage(data: bytearray, rng: random.Random) -> None:
    at, other = (rng.randrange(len(data) + 1) for _ in range(2))
    size = rng.choice([1, 16, BLOCK, 4 * BLOCK])
    if rng.random() < 0.5:  # on the borders that a tar has
        at, other = at // BLOCK * BLOCK, other // BLOCK * BLOCK
    kind = rng.choice(["flip", "byte", "cut", "double", "remove", "swap", "zero"])
    if kind in ("flip", "byte") and at < len(data):
        data[at] ^= 1 << rng.randrange(8) if kind == "flip" else rng.randrange(1, 256)
    elif kind == "cut":
        del data[at:]
    elif kind == "double":
        data[at:at] = data[at : at + size]
    elif kind == "remove":
        del data[at : at + size]
    elif kind == "swap":
        data[at : at + size], data[other : other + size] = (
            data[other : other + size],
            data[at : at + size],
        )
    elif kind == "zero":
        data[at : at + size] = bytes(len(data[at : at + size]))


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON file replaced, doubled or removed."""
    tree = json.loads(data)
    node, key = rng.choice(list(_places(tree)))
    kind = rng.choice(["replace", "replace", "remove", "exchange"])
    if kind == "remove":
        del node[key]
    elif kind == "exchange":
        other_node, other = rng.choice(list(_places(tree)))
        node[key] = copy.deepcopy(other_node[other])
    else:
        node[key] = rng.choice(STRANGE_VALUES)
    return json.dumps(tree).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)
