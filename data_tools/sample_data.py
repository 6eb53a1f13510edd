"""python data_tools/sample_data.py DESTINATION: 1,797 real images of handwritten digits.

They come with scikit-learn and are written as an image folder, DESTINATION/{train,test}/{0..9},
upscaled from 8 x 8 pixels; every sixth image of a class is a test image.
"""

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from mixer_dist.errors import ConfigError, MissingError, MixerError, RefusedError

BRIGHTEST = 16  # the data set's white
TEST_EVERY = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Write the images; the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        num_images = write_digits(Path(arguments.destination), arguments.size)
    except MixerError as error:
        print(f"sample_data.py: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{num_images:,} images of 10 classes in {arguments.destination}/train and /test")
    return 0


def write_digits(destination: Path, size_px: int) -> int:
    """Write all digits below `destination`, whole or not at all; how many they are."""
    if size_px < 1:
        raise ConfigError(f"--size must be at least 1, got {size_px}")
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise RefusedError(f"{destination} is not an empty folder: choose another or remove it")
    digits = list(_digits())
    unfinished = destination.with_name(f"{destination.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for path, pixels in digits:
        (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BILINEAR)
        image.save(unfinished / path)
    unfinished.rename(destination)
    return len(digits)


def _digits() -> Iterator[tuple[str, np.ndarray]]:
    """Path and uint8 pixels (8, 8) of each image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingError("scikit-learn is not installed: pip install scikit-learn") from None
    seen: Counter[int] = Counter()
    data = load_digits()
    for number, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        seen[label] += 1
        split = "train" if seen[label] % TEST_EVERY else "test"
        grey = np.round(pixels * (255 / BRIGHTEST)).astype(np.uint8)
        yield f"{split}/{label}/{number:04d}.png", grey


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write real images of handwritten digits, to try things out.",
        epilog="example: python data_tools/sample_data.py datasets/digits",
    )
    parser.add_argument("destination", metavar="DESTINATION", help="a new folder")
    parser.add_argument("--size", type=int, default=32, help="side in pixels (default: 32)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
