"""How a storage place is reached."""

from typing import Literal

from mixer_dist.sections import (
    PositiveFloat,
    Section,
    Url,
)


class StorageConfig(Section):
    """Options of one storage place; what is not given, and credentials, the AWS chain decides."""

    endpoint_url: Url | None = None
    region: str | None = None
    profile: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] | None = None
    checksum: Literal["when_supported", "when_required"] | None = None
    """Whether checksums of the S3 protocol are demanded; older servers need when_required."""
    requester_pays: bool = False
    """Reading is charged to your account, as some public buckets demand."""
    sse: Literal["AES256", "aws:kms"] | None = None
    """Server-side encryption of what is written."""
    kms_key_id: str | None = None
    """The key for sse: aws:kms, as its ARN; not a secret."""
    ca_bundle: str | None = None
    """A PEM file of certificates to trust, for stores with their own authority."""
    proxy: Url | None = None
    """URL of a proxy on the way to the store."""
    deadline_s: PositiveFloat = 120.0
    """How long failing reads and writes are tried again before the run gives up."""
