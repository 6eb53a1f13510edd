"""The verb verify-resume."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixer_dist.cli.arguments import add_config, add_verb, config_of, is_printed
from mixer_dist.errors import MixerError

if TYPE_CHECKING:
    from mixer_dist.operations.verify_resume.plan import Plan


def add_verify_resume(verbs: Any) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs, "verify-resume", _verify_resume,
        "prove on this machine that a run that is killed equals one that is not",
        "mixer-dist verify-resume configs/quickstart.yaml --starts zero2:2 fsdp:1",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument("--steps", type=int, default=24, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--incidents", type=int, default=3, metavar="N",
        help="times that the run is killed or preempted (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="that their moments are drawn from")
    parser.add_argument(
        "--starts", nargs="+", metavar="ENGINE:RANKS", default=[],
        help="how the run is started, in turn (default: the config's engine on every GPU, or on "
        "2 ranks)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("runs/verify-resume"),
        help="for logs, picture and result (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--run-dirs", metavar="URL", help="where the runs go (default: into DIR)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and stop")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _verify_resume(arguments: argparse.Namespace) -> None:
    config = config_of(arguments)
    if is_printed(arguments, config):
        return
    from mixer_dist.operations.verify_resume.plan import make_plan, plan_lines

    plan = make_plan(
        config, num_steps=arguments.steps, num_incidents=arguments.incidents, seed=arguments.seed,
        starts=arguments.starts, out=arguments.out, run_dirs=arguments.run_dirs,
    )  # fmt: skip
    if not arguments.json:
        print("\n".join(plan_lines(plan)), flush=True)
    if not arguments.dry_run:
        _prove(plan, is_json=arguments.json)


def _prove(plan: "Plan", *, is_json: bool) -> None:
    from mixer_dist.eval.look import Look
    from mixer_dist.operations.verify_resume.proof import Trials
    from mixer_dist.operations.verify_resume.verdict import proof_lines, proof_png, proof_tree

    proof = Trials(plan).prove()
    picture, tree = plan.out / "proof.png", proof_tree(plan, proof)
    picture.write_bytes(proof_png(plan, proof, Look()))
    (plan.out / "proof.json").write_text(json.dumps(tree, indent=2) + "\n")
    lines = [*proof_lines(proof), f"picture       {picture}"]
    print(json.dumps(tree) if is_json else "\n".join(lines))
    if not proof.holds:
        raise MixerError(f"the interrupted run is another one: logs and metrics lie in {plan.out}")
