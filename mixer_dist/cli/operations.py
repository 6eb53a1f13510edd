"""Verbs that look at a run or a machine: status, doctor."""

import argparse
import json
import time
from dataclasses import asdict
from typing import Any

from mixer_dist.cli.arguments import add_verb, config_of
from mixer_dist.cli.storage_options import add_storage_arguments, storage_of
from mixer_dist.errors import MixerError, PeerError


def add_operations(verbs: Any) -> None:
    """status, doctor."""
    status = add_verb(
        verbs, "status", _status, "how a run is doing and when it will end, in five lines",
        "mixer-dist status runs/quickstart",
    )  # fmt: skip
    status.add_argument("run_dir", metavar="RUN_DIR", help="a run's directory or URL")
    status.add_argument("--json", action="store_true", help="print the result as JSON")
    add_storage_arguments(status)
    doctor = add_verb(
        verbs, "doctor", _doctor,
        "check this machine, and all ranks under srun or torchrun; each finding with its mend",
        "srun --nodes=4 --ntasks-per-node=8 mixer-dist doctor configs/quickstart.yaml",
    )  # fmt: skip
    doctor.add_argument(
        "config", metavar="CONFIG", nargs="?", help="a run's YAML file: check its storage too"
    )
    doctor.add_argument("overrides", nargs="*", metavar="key.path=value")
    doctor.add_argument("--json", action="store_true", help="print the result as JSON")


def _status(arguments: argparse.Namespace) -> None:
    from mixer_dist.operations.recent import read_recent
    from mixer_dist.operations.status import status_of
    from mixer_dist.operations.status_lines import status_lines
    from mixer_dist.run_dir import RunDir

    recent = read_recent(storage_of(arguments), RunDir(arguments.run_dir))
    status = status_of(recent, time.time())
    print(json.dumps(asdict(status)) if arguments.json else "\n".join(status_lines(status)))


def _doctor(arguments: argparse.Namespace) -> None:
    from mixer_dist import distributed
    from mixer_dist.logs import start_logging
    from mixer_dist.operations.doctor import examination_lines, examine

    config = config_of(arguments) if arguments.config else None
    start_logging(output_is_data=True)
    found = examine(config)
    if distributed.is_main() or not found.is_joint:
        lines = "\n".join(examination_lines(found))
        print(json.dumps(asdict(found)) if arguments.json else lines, flush=True)
    if not found.num_troubles:
        return
    if found.is_joint and not distributed.is_main():
        raise PeerError("rank 0 has said why", MixerError.exit_code)
    raise MixerError(f"doctor: {found.num_troubles} bad findings, as said above")
