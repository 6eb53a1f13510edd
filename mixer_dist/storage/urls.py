"""Names of files and folders: local paths and URLs are treated alike."""


def join(base: str, *names: str) -> str:
    """`base` followed by names; a name that is itself a URL or an absolute path replaces it."""
    for name in names:
        is_whole = "://" in name or name.startswith("/")
        base = name if is_whole else f"{base.rstrip('/')}/{name}"
    return base


def parent(url: str) -> str:
    """The folder a URL lies in."""
    head, slash, _ = url.rpartition("/")
    return head if slash else "."


def is_s3(url: str) -> bool:
    """Whether a URL names an object in an S3 bucket."""
    return url.startswith(("s3://", "s3a://"))
