"""Actions on checkpoints: list, verify, keep, remove and reshard them; weights in and out."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from mixer_dist.cli.arguments import add_verb
from mixer_dist.cli.retention import add_retention
from mixer_dist.cli.storage_options import add_storage_arguments, storage_of


def add_checkpoint(verbs: Any) -> None:
    """The verb `checkpoint` and its actions."""
    parser = verbs.add_parser(
        "checkpoint",
        help="list, verify, keep, remove, reshard, export and import checkpoints",
        description="List, verify, keep, remove, reshard, export and import checkpoints.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    add_retention(actions)
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
        "weights to one file: the official .npz, or .safetensors in our names or timm's",
        "mixer-dist checkpoint export runs/quickstart/checkpoints/step-00000100 mixer.npz",
    )  # fmt: skip
    export.add_argument("checkpoint", metavar="CHECKPOINT")
    export.add_argument("file", metavar="FILE", help="a path or URL; its suffix tells the format")
    export.add_argument("--names", choices=("ours", "timm"), help="in a .safetensors file")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="in a .safetensors file",
    )  # fmt: skip
    export.add_argument("--json", action="store_true", help="print the result as JSON")
    import_ = add_verb(
        actions, "import", _checkpoint_import, "a checkpoint from a .npz or .safetensors file",
        "mixer-dist checkpoint import Mixer-B_16.npz runs/official/checkpoints/step-00000000",
    )  # fmt: skip
    import_.add_argument("file", metavar="FILE", help="a path or URL; names are ours or timm's")
    import_.add_argument("checkpoint", metavar="CHECKPOINT")
    import_.add_argument("--json", action="store_true", help="print the result as JSON")
    for action in actions.choices.values():
        add_storage_arguments(action)


def _checkpoint_reshard(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.reshard import reshard

    manifest = reshard(storage_of(arguments), arguments.checkpoint, arguments.out, arguments.files)
    num_bytes = sum(entry.num_bytes for entry in manifest.files)
    result = {"step": manifest.step, "num_files": len(manifest.files), "num_bytes": num_bytes}
    line = f"wrote {arguments.out}: {len(manifest.files)} files, {num_bytes:,} bytes"
    print(json.dumps(result) if arguments.json else line)


def _checkpoint_export(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.convert import export_weights
    from mixer_dist.checkpoint.restore import verified
    from mixer_dist.checkpoint.weights_file import weights_format

    storage = storage_of(arguments)
    file_format = weights_format(arguments.file, arguments.names, arguments.dtype)
    checkpoint = verified(storage, arguments.checkpoint)
    done = export_weights(storage, checkpoint, arguments.file, file_format)
    line = f"wrote {done.file}: {done.num_parameters} parameters in {done.num_bytes:,} bytes"
    print(json.dumps(asdict(done)) if arguments.json else line)


def _checkpoint_import(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.convert import import_weights

    manifest = import_weights(storage_of(arguments), arguments.file, arguments.checkpoint)
    num_parameters = len(manifest.parameters)
    result = {"checkpoint": arguments.checkpoint, "num_parameters": num_parameters}
    line = f"wrote {arguments.checkpoint}: {num_parameters} parameters"
    print(json.dumps(result) if arguments.json else line)
