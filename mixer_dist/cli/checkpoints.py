"""Actions on checkpoints: list, verify, keep and remove them; export and import weights."""

import argparse
from typing import Any

from mixer_dist.cli.arguments import add_verb
from mixer_dist.cli.retention import add_retention
from mixer_dist.cli.storage_options import add_storage_arguments, storage_of


def add_checkpoint(verbs: Any) -> None:
    """The verb `checkpoint` and its actions."""
    parser = verbs.add_parser(
        "checkpoint",
        help="list, verify, keep, remove, export and import checkpoints",
        description="List, verify, keep, remove, export and import checkpoints.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    add_retention(actions)
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
    for action in actions.choices.values():
        add_storage_arguments(action)


def _checkpoint_export(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.convert import export_weights
    from mixer_dist.checkpoint.restore import verified

    storage = storage_of(arguments)
    export_weights(storage, verified(storage, arguments.checkpoint), arguments.file)
    print(f"wrote {arguments.file}")


def _checkpoint_import(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.convert import import_weights

    manifest = import_weights(storage_of(arguments), arguments.file, arguments.checkpoint)
    print(f"wrote {arguments.checkpoint}: {len(manifest.parameters)} parameters")
