"""What runs on each rank in test_doctor.py."""

import contextlib
import io

from mixer_dist import cli


def doctor(arguments: list[str]) -> tuple[int, str]:
    """The verb, on one rank; its exit code and what it prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = cli.main(["doctor", *arguments])
    return code, text.getvalue()
