"""Actions on checkpoints: list, verify, reshard, export, import."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from mixer_dist.cli.arguments import add_verb

if TYPE_CHECKING:
    from mixer_dist.checkpoint.layout import CheckpointManifest


def add_checkpoint(verbs: Any) -> None:
    """The verb `checkpoint` and its actions."""
    parser = verbs.add_parser(
        "checkpoint",
        help="list, verify, reshard, export and import checkpoints",
        description="List, verify, reshard, export and import checkpoints.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    ls = add_verb(
        actions, "ls", _checkpoint_ls, "the checkpoints of a run, newest first",
        "mixer-dist checkpoint ls runs/quickstart",
    )  # fmt: skip
    ls.add_argument("run_dir", metavar="RUN_DIR")
    ls.add_argument("--json", action="store_true", help="print the result as JSON")
    verify = add_verb(
        actions, "verify", _checkpoint_verify, "hash every byte of a checkpoint",
        "mixer-dist checkpoint verify runs/quickstart/checkpoints/step-00000100",
    )  # fmt: skip
    verify.add_argument("checkpoint", metavar="CHECKPOINT")
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    reshard = add_verb(
        actions, "reshard", _checkpoint_reshard, "the same checkpoint in another number of files",
        "mixer-dist checkpoint reshard runs/h14/checkpoints/step-00010000 step-00010000 --files 8",
    )  # fmt: skip
    reshard.add_argument("checkpoint", metavar="CHECKPOINT")
    reshard.add_argument("out", metavar="OUT", help="a folder or URL that holds no checkpoint")
    reshard.add_argument("--files", metavar="N", type=int, required=True, help="of equal size")
    reshard.add_argument("--json", action="store_true", help="print the result as JSON")
    export = add_verb(
        actions, "export", _checkpoint_export,
        "weights to one file: the official .npz, or .safetensors in our names",
        "mixer-dist checkpoint export runs/quickstart/checkpoints/step-00000100 mixer.npz",
    )  # fmt: skip
    export.add_argument("checkpoint", metavar="CHECKPOINT")
    export.add_argument("file", metavar="FILE")
    import_ = add_verb(
        actions, "import", _checkpoint_import, "a checkpoint from a .npz or .safetensors file",
        "mixer-dist checkpoint import Mixer-B_16.npz runs/official/checkpoints/step-00000000",
    )  # fmt: skip
    import_.add_argument("file", metavar="FILE")
    import_.add_argument("checkpoint", metavar="CHECKPOINT")


def _checkpoint_ls(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.listing import list_lines, list_rows

    rows = list_rows(arguments.run_dir)
    print(json.dumps(rows) if arguments.json else "\n".join(list_lines(rows)))


def _checkpoint_verify(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.restore import verified
    from mixer_dist.storage import Storage

    manifest = verified(Storage(), arguments.checkpoint).manifest
    _print_size(manifest, "{}: {}, all right", arguments.checkpoint, arguments.json)


def _checkpoint_reshard(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.reshard import reshard
    from mixer_dist.storage import Storage

    manifest = reshard(Storage(), arguments.checkpoint, arguments.out, arguments.files)
    _print_size(manifest, "wrote {}: {}", arguments.out, arguments.json)


def _print_size(manifest: "CheckpointManifest", sentence: str, url: str, is_json: bool) -> None:
    num_bytes = sum(entry.num_bytes for entry in manifest.files)
    result = {"step": manifest.step, "num_files": len(manifest.files), "num_bytes": num_bytes}
    line = sentence.format(url, f"{len(manifest.files)} files, {num_bytes:,} bytes")
    print(json.dumps(result) if is_json else line)


def _checkpoint_export(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.convert import export_weights
    from mixer_dist.checkpoint.restore import verified
    from mixer_dist.storage import Storage

    storage = Storage()
    export_weights(storage, verified(storage, arguments.checkpoint), arguments.file)
    print(f"wrote {arguments.file}")


def _checkpoint_import(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.convert import import_weights
    from mixer_dist.storage import Storage

    manifest = import_weights(Storage(), arguments.file, arguments.checkpoint)
    print(f"wrote {arguments.checkpoint}: {len(manifest.parameters)} parameters")
