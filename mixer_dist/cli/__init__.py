"""The command line: `mixer-dist VERB …`. An error is one line on stderr and an exit code.

Verbs import what they need when they run, so that --help answers at once.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from mixer_dist import __version__
from mixer_dist.cli.arguments import EXIT_CODES, Parser
from mixer_dist.cli.bench import add_bench
from mixer_dist.cli.checkpoints import add_checkpoint
from mixer_dist.cli.data import add_data
from mixer_dist.cli.operations import add_operations
from mixer_dist.cli.plan import add_plan
from mixer_dist.cli.pool import add_pool
from mixer_dist.cli.proofs import add_verify_resume
from mixer_dist.cli.report import add_report
from mixer_dist.cli.runs import add_run_verbs
from mixer_dist.errors import MixerError, PeerError, is_out_of_memory

INTERRUPTED = 130
PEER_DELAY_S = 1.0
OUT_OF_MEMORY = (
    "out of memory: set a smaller micro_batch_size, or auto; or engine.recompute=true; or an "
    "engine that shares the training state among ranks, such as engine.name=fsdp"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code."""
    arguments = build_parser().parse(argv)
    try:
        arguments.verb(arguments)
        return 0
    except PeerError as error:
        time.sleep(PEER_DELAY_S)  # the first to end has torchrun end the one that tells why
        return error.exit_code
    except MixerError as error:
        print(f"mixer-dist: {error}", file=sys.stderr)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"mixer-dist: {OUT_OF_MEMORY}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mixer-dist: interrupted; the same command does it again, and goes on with a run",
              file=sys.stderr)  # fmt: skip
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, else Python complains at its end
        return 0


def build_parser() -> Parser:
    """All verbs and their options."""
    parser = Parser(
        prog="mixer-dist",
        description="Distributed pretraining of MLP-Mixer: exact, elastic, resumable.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mixer-dist {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    add_run_verbs(verbs)
    add_pool(verbs)
    add_report(verbs)
    add_operations(verbs)
    add_plan(verbs)
    add_bench(verbs)
    add_checkpoint(verbs)
    add_data(verbs)
    add_verify_resume(verbs)
    return parser
