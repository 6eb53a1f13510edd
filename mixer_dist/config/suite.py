"""A suite: tasks in a file of their own, over datasets below one root."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from mixer_dist.config.evaluation import EvaluationConfig
from mixer_dist.config.run import RunConfig
from mixer_dist.sections import Section, not_empty, parse
from mixer_dist.yaml_tree import read_yaml

PLACEHOLDER = "{datasets}"
DEFAULT_ROOT = "datasets"


class Suite(Section):
    """What a suite's file holds."""

    evals: Annotated[tuple[EvaluationConfig, ...], AfterValidator(not_empty)]


def load_suite(path: str | Path, datasets: str = DEFAULT_ROOT) -> Suite:
    """A suite's tasks, `{datasets}` in their URLs being the given root; ConfigError."""
    return parse(Suite, _placed(read_yaml(Path(path)), datasets.rstrip("/")), str(path))


def with_suite(config: RunConfig, suite: Suite) -> RunConfig:
    """A run whose evals are also those of a suite; ConfigError where they do not fit it."""
    tree = config.model_dump(mode="json")
    tree["evals"] += suite.model_dump(mode="json")["evals"]
    return parse(RunConfig, tree, "the suite")


def _placed(node: Any, root: str) -> Any:
    if isinstance(node, dict):
        return {key: _placed(value, root) for key, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, root) for value in node]
    return node.replace(PLACEHOLDER, root) if isinstance(node, str) else node
