"""Files on disks and in buckets, the same through fsspec: read, ranged read, list, atomic write."""

from mixer_dist.storage.files import Storage
from mixer_dist.storage.partial_writes import PartialWrite
from mixer_dist.storage.ranges import Version
from mixer_dist.storage.urls import join, parent

__all__ = ["PartialWrite", "Storage", "Version", "join", "parent"]
