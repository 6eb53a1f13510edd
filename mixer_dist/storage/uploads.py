"""Multipart uploads to S3 that nobody finished: a store keeps their parts, at a price, unseen."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError as S3Error
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from mixer_dist.storage.partial_writes import PartialWrite
from mixer_dist.storage.ranges import s3_place


async def uploads_on_s3(fs: S3FileSystem, path: str) -> list[PartialWrite]:
    """Those of all objects below a folder."""
    found: list[PartialWrite] = []
    try:
        client, place = await s3_place(fs, path)
        folder = place.pop("Key")
        place["Prefix"] = f"{folder.rstrip('/')}/" if folder else ""
        while True:
            reply = await client.list_multipart_uploads(**place)
            found += _uploads(place["Bucket"], reply)
            if not reply.get("IsTruncated"):
                return found
            place["KeyMarker"] = reply["NextKeyMarker"]
            place["UploadIdMarker"] = reply["NextUploadIdMarker"]
    except S3Error as error:
        raise translate_boto_error(error) from error


async def abort_on_s3(fs: S3FileSystem, path: str, upload_id: str) -> None:
    """Drop an upload's parts; FileNotFoundError where it is over already."""
    try:
        client, place = await s3_place(fs, path)
        await client.abort_multipart_upload(**place, UploadId=upload_id)
    except S3Error as error:
        raise translate_boto_error(error) from error


def _uploads(bucket: str, reply: dict[str, Any]) -> list[PartialWrite]:
    """By the store's own clock, so that this machine's may be wrong."""
    date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    return [
        PartialWrite(
            url=f"s3://{bucket}/{entry['Key']}",
            upload_id=entry["UploadId"],
            age_s=(now - entry["Initiated"]).total_seconds(),
        )
        for entry in reply.get("Uploads", [])
    ]
