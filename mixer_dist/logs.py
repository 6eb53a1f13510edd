"""Logging: rank 0 on standard output, the other ranks only when something is wrong."""

import logging
import sys

from mixer_dist import distributed
from mixer_dist.errors import redacted


def start_logging(*, output_is_data: bool = False) -> None:
    """Log from now on, each line with its time and, off rank 0, its rank.

    Where standard output is data, such as JSON, all lines go to standard error.
    """
    rank = distributed.rank()
    where = f"[rank {rank}] " if rank else ""
    handler = logging.StreamHandler(sys.stderr if rank or output_is_data else sys.stdout)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {where}%(message)s", "%H:%M:%S"))
    handler.addFilter(_redact)
    logger = logging.getLogger("mixer_dist")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if rank else logging.INFO)
    logger.propagate = False


def _redact(record: logging.LogRecord) -> bool:
    record.msg, record.args = redacted(record.getMessage()), ()
    return True
