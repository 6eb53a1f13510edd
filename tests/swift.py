"""OpenStack Swift's S3 API on loopback: a strict server, for what rclone's is too lenient for.

Swift answers ranges with 206, checks signatures and checksums and enforces create-exclusive. It is
four processes; their packages are in a virtual environment of their own, made once below build/.
"""

import hashlib
import os
import pwd
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mixer_dist.config import StorageConfig
from mixer_dist.storage import Storage

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = Path(__file__).with_name("swift-requirements.txt")
HOST = "127.0.0.1"
START_S = 60.0
STOP_S = 5.0

BACKENDS = ("account", "container", "object")

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_suffix = {salt}
[storage-policy:0]
name = single
default = yes
"""
SERVER = """\
[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 0
user = {user}
swift_dir = {directory}
devices = {directory}
mount_check = false
"""
BACKEND = """\
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
# No cache filter: tempauth needs memcached for its tokens only, which S3 does not use.
PROXY = """\
[pipeline:main]
pipeline = catch_errors s3api tempauth bulk slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
{users}
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""
USER = "user_{user} = {secret} .admin"
# The ring-builder command would need nine processes for this.
BUILD_RINGS = """\
import sys
from swift.common.ring import RingBuilder

for name, port in zip(sys.argv[2::2], sys.argv[3::2]):
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    place = {"region": 1, "zone": 1, "ip": sys.argv[1], "port": int(port)}
    builder.add_dev({**place, "device": "disk", "weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(f"{name}.ring.gz")
"""


@dataclass(frozen=True)
class Swift:
    """A running server; `key` is account:user."""

    endpoint_url: str
    key: str
    secret: str

    def options(self) -> StorageConfig:
        """What a configuration has to say about this server."""
        return StorageConfig(endpoint_url=self.endpoint_url)

    def storage(self) -> Storage:
        """A storage that finds this server under s3://."""
        return Storage({"s3://": self.options()})

    def new_bucket(self) -> str:
        """The URL of an empty bucket."""
        url = f"s3://bucket-{secrets.token_hex(4)}"
        file_system, path = self.storage().open(url)
        file_system.mkdir(path)
        return url


@contextmanager
def serve_swift(
    directory: Path, *, key: str, secret: str, others: Sequence[str] = ()
) -> Iterator[Swift]:
    """Serve from an empty directory, on free ports, for a user account:user.

    The others are more of its kind, with the same secret and, in one account, the same buckets.
    """
    python = install_swift() / "bin" / "python"
    ports = dict(zip((*BACKENDS, "proxy"), free_ports(4), strict=True))
    write_configs(directory, ports, (key, *others), secret)
    build_rings(python, directory, ports)
    with ExitStack() as running:
        processes = {n: running.enter_context(server(python, directory, n)) for n in ports}
        for name, process in processes.items():
            wait_until_it_answers(process, ports[name], directory / f"{name}.log")
        yield Swift(f"http://{HOST}:{ports['proxy']}", key, secret)


def install_swift() -> Path:
    """The virtual environment with Swift: installed once, and anew for other requirements."""
    content = REQUIREMENTS.read_bytes() + sys.version.encode()
    path = ROOT / "build" / f"swift-venv-{hashlib.sha256(content).hexdigest()[:8]}"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # whole or not at all
            unfinished = Path(folder) / path.name
            venv.create(unfinished, with_pip=True, symlinks=True)
            pip = [unfinished / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", "--quiet", "-r", REQUIREMENTS], check=True)
            with suppress(OSError):  # another worker was quicker
                unfinished.rename(path)
    return path


def free_ports(number: int) -> list[int]:
    """As many ports that nothing listens on, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def write_configs(directory: Path, ports: dict[str, int], keys: Sequence[str], secret: str) -> None:
    """One file a server, and the one that they share."""
    (directory / "disk").mkdir()
    (directory / "swift.conf").write_text(SWIFT_CONF.format(salt=secrets.token_hex(8)))
    myself = pwd.getpwuid(os.getuid()).pw_name  # Swift changes to this user, by default to swift
    users = [USER.format(user=key.replace(":", "_"), secret=secret) for key in keys]
    access = PROXY.format(users="\n".join(users))
    for name, port in ports.items():
        server = SERVER.format(host=HOST, port=port, user=myself, directory=directory)
        kind = access if name == "proxy" else BACKEND.format(name=name)
        (directory / f"{name}.conf").write_text(server + kind)


def build_rings(python: Path, directory: Path, ports: dict[str, int]) -> None:
    """The files that say where accounts, containers and objects lie: all on one disk."""
    pairs = [text for name in BACKENDS for text in (name, str(ports[name]))]
    subprocess.run([python, "-c", BUILD_RINGS, HOST, *pairs], cwd=directory, check=True)


@contextmanager
def server(python: Path, directory: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of the four processes, ended with its context."""
    command = [python, python.with_name(f"swift-{name}-server"), directory / f"{name}.conf"]
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([*command, "--verbose"], stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the port takes connections; RuntimeError with the log where it never does."""
    give_up = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < give_up:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"no Swift on {HOST}:{port}: {log.read_text(errors='replace')}")
