"""What s3fs takes for our storage options; credentials come from the AWS chain alone."""

from typing import Any

from mixer_dist.config import StorageConfig
from mixer_dist.storage.requests import stall_limit_s


def s3_arguments(options: StorageConfig) -> dict[str, Any]:
    """Keyword arguments of s3fs.S3FileSystem."""
    client = {"region_name": options.region, "verify": options.ca_bundle}
    encryption = {"ServerSideEncryption": options.sse, "SSEKMSKeyId": options.kms_key_id}
    return {
        "endpoint_url": options.endpoint_url,
        "profile": options.profile,
        "requester_pays": options.requester_pays,
        "client_kwargs": _given(client),
        "s3_additional_kwargs": _given(encryption),
        "config_kwargs": _connection(options),
        "use_listings_cache": False,  # another process's checkpoint must be seen at once
        "max_concurrency": 1,  # of several parts, cat_file would fill a short one up with zeros
    }


def _connection(options: StorageConfig) -> dict[str, Any]:
    """What botocore's Config takes."""
    proxies = {"http": options.proxy, "https": options.proxy} if options.proxy else None
    style = {"addressing_style": options.addressing_style} if options.addressing_style else None
    return _given(
        {
            "request_checksum_calculation": options.checksum,
            "response_checksum_validation": options.checksum,
            "s3": style,
            "proxies": proxies,
            "read_timeout": stall_limit_s(options.deadline_s),
            "retries": {"total_max_attempts": 1},  # one back-off is enough: ours
        }
    )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
