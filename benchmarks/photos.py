"""python benchmarks/photos.py FOLDER: the two choices in shard.py that depend on real photographs.

Which distance of perceptual hashes tells copies of a photo from other photos, and which size and
fidelity a photo has when it is made smaller, by JPEG quality. Prints Markdown. Takes a folder of
JPEGs, searched with its sub-folders.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from mixer_dist.data.decode import Pixels, decode_image
from mixer_dist.data.perceptual_hash import perceptual_hash
from mixer_dist.data.resizing import resize

SHORT_SIDE_PX = 256


def main() -> int:
    """Print both tables; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    paths = sorted(parser.parse_args().folder.rglob("*.[jJ][pP]*[gG]"))
    photos = [decode_image(path.read_bytes()) for path in paths]
    print(f"{len(photos)} photos\n")
    print_distances(photos)
    print_qualities(photos, [path.stat().st_size for path in paths])
    return 0


def print_distances(photos: list[Pixels]) -> None:
    """How many bits copies differ by, and other photos."""
    hashes = [perceptual_hash(photo) for photo in photos]
    found: dict[str, list[int]] = {}
    for photo, original in zip(photos, hashes, strict=True):
        for name, copy in copies(Image.fromarray(photo)):
            found.setdefault(name, []).append((perceptual_hash(copy) ^ original).bit_count())
    print("| copy | median bits | 95% | largest |\n|---|---|---|---|")
    for name, bits in found.items():
        print(f"| {name} | {np.median(bits):.0f} | {np.percentile(bits, 95):.0f} | {max(bits)} |")
    others = sorted((a ^ b).bit_count() for a, b in combinations(hashes, 2))
    print(f"\n{len(others):,} pairs of different photos: at least {others[0]} bits, "
          f"median {others[len(others) // 2]}\n")  # fmt: skip


def copies(photo: Image.Image) -> Iterator[tuple[str, Pixels]]:
    """What becomes of a photo on the web."""
    width, height = photo.size
    for quality in (95, 75, 50, 30, 10):
        yield f"quality {quality}", encoded(photo, quality)
    for side in (256, 128, 64):
        scale = side / min(width, height)
        small = photo.resize((round(width * scale), round(height * scale)))
        for quality in (95, 50):
            yield f"short side {side}, quality {quality}", encoded(small, quality)
    yield "square of 224, quality 90", encoded(photo.resize((224, 224)), 90)
    yield "twice the size, quality 90", encoded(photo.resize((2 * width, 2 * height)), 90)
    yield "grey, quality 90", encoded(photo.convert("L"), 90)
    yield "20% brighter, quality 90", encoded(photo.point(lambda v: min(255, int(1.2 * v))), 90)
    dx, dy = width // 50, height // 50
    yield "2% cut off each side", encoded(photo.crop((dx, dy, width - dx, height - dy)), 90)
    yield "mirrored", np.array(photo)[:, ::-1].copy()


def encoded(photo: Image.Image, quality: int) -> Pixels:
    """After a round of JPEG."""
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality)
    return decode_image(buffer.getvalue())


def print_qualities(photos: list[Pixels], num_bytes: list[int]) -> None:
    """Size and fidelity of photos made smaller, with colours at half or at full resolution."""
    larger = [i for i, photo in enumerate(photos) if min(photo.shape[:2]) > SHORT_SIDE_PX]
    small = [smaller(photos[i]) for i in larger]
    before = sum(num_bytes[i] for i in larger)
    print(f"{len(larger)} of them made smaller, to a short side of {SHORT_SIDE_PX}:\n")
    print("| quality | colours | KB each | of their bytes | mean PSNR | worst |")
    print("|---|---|---|---|---|---|")
    for quality in (85, 90, 92, 95, 98):
        for colours, sampling in (("half", "420"), ("full", "444")):
            data = [simplejpeg.encode_jpeg(s, quality, "RGB", sampling) for s in small]
            decibels = [psnr(decode_image(d), s) for d, s in zip(data, small, strict=True)]
            after = sum(map(len, data))
            print(f"| {quality} | {colours} | {after / len(data) / 1e3:.1f} | {after / before:.2f} "
                  f"| {np.mean(decibels):.1f} dB | {min(decibels):.1f} dB |")  # fmt: skip


def smaller(photo: Pixels) -> Pixels:
    """As shard.py does it."""
    height, width, _ = photo.shape
    scale = SHORT_SIDE_PX / min(height, width)
    return resize(photo, round(height * scale), round(width * scale), "bicubic")


def psnr(found: Pixels, expected: Pixels) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.mean((found.astype(float) - expected) ** 2)))


if __name__ == "__main__":
    sys.exit(main())
