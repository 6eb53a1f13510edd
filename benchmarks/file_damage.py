"""Damage to one file of a folder, decided by a random generator."""

import random

Files = dict[str, bytes]
"""What a folder holds, by name."""

DAMAGES = ("bit flipped", "cut off", "removed", "renamed", "emptied", "longer", "exchanged")
WEIGHTS = (8, 4, 4, 1, 1, 1, 1)


def damaged(files: Files, rng: random.Random) -> tuple[str, Files]:
    """The kind of damage, and what the folder holds after it."""
    kind, name = rng.choices(DAMAGES, WEIGHTS)[0], rng.choice(sorted(files))
    changed = dict(files)
    data = changed.pop(name)
    if kind == "bit flipped":
        changed[name] = flipped(data, rng.randrange(8 * len(data)))
    elif kind == "cut off":
        changed[name] = data[: rng.randrange(1, len(data))]
    elif kind == "renamed":
        changed[f"{name}.1"] = data
    elif kind == "emptied":
        changed[name] = b""
    elif kind == "longer":
        changed[name] = data + rng.randbytes(rng.choice([1, 8, 4096]))
    elif kind == "exchanged":
        other = rng.choice(sorted(changed))
        changed[name], changed[other] = changed[other], data
    return kind, changed


def flipped(data: bytes, bit: int) -> bytes:
    """The data with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def names_changed(files: Files, changed: Files) -> set[str]:
    """The files that are gone, or hold something else."""
    return {name for name, data in files.items() if changed.get(name) != data}
