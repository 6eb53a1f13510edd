"""Files with the very same bytes: the first by path stays."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from mixer_dist.data.image_files import ImageFile, LeftOut, read_file
from mixer_dist.errors import MissingError
from mixer_dist.storage import Storage


def same_size_images(images: Sequence[ImageFile]) -> list[ImageFile]:
    """Those whose size another one has too: the only ones that need to be read."""
    counts = Counter(image.num_bytes for image in images)
    return [image for image in images if counts[image.num_bytes] > 1]


def hash_contents(storage: Storage, root: str, images: Sequence[ImageFile]) -> dict[str, str]:
    """SHA-256 of each file by its path, but for those that cannot be read; in any process."""
    hashes = {}
    for image in images:
        try:
            data = read_file(storage, root, image.path)
        except (OSError, MissingError):
            continue  # whoever decodes it will name the reason
        hashes[image.path] = hashlib.sha256(data).hexdigest()
    return hashes


def find_duplicates(hashes: Mapping[str, str]) -> list[LeftOut]:
    """All but the first path of each content."""
    first: dict[str, str] = {}
    found = []
    for path, digest in sorted(hashes.items()):
        if digest in first:
            found.append(LeftOut(path, "duplicate", f"of {first[digest]}"))
        else:
            first[digest] = path
    return found
