"""What runs in processes of their own in test_bench.py."""

import contextlib
import io

from mixer_dist import cli


def bench(arguments: list[str]) -> tuple[int, str]:
    """The exit code and what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(["bench", *arguments])
    return code, printed.getvalue()
