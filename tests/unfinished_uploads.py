"""Uploads to S3 that somebody began and nobody completed."""

from fsspec.asyn import sync

from mixer_dist.storage import Storage


def begin_upload(storage: Storage, url: str) -> None:
    """One part of an upload that is never completed."""
    fs, path = storage.open(url)
    bucket, key, _ = fs.split_path(path)

    async def begin() -> None:
        client = await fs.get_s3(bucket)
        place = {"Bucket": bucket, "Key": key}
        upload = await client.create_multipart_upload(**place)
        await client.upload_part(**place, UploadId=upload["UploadId"], PartNumber=1, Body=b"half")

    sync(fs.loop, begin)
