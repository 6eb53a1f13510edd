"""YAML files as plain trees, and `key.path=value` overrides on them."""

import re
from pathlib import Path
from typing import Any

import yaml

from mixer_dist.errors import ConfigError, MissingError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # SafeLoader refuses lists and mappings as keys
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{key.start_mark.name}:{line}: key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text such as 12e3, which _Loader would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def dump_yaml(tree: dict[str, Any]) -> str:
    """The text that `load_yaml` reads as this tree."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def load_yaml(text: str, source: str) -> dict[str, Any]:
    """A YAML mapping; ConfigError when the text is something else."""
    try:
        loader = _Loader(text)
        loader.name = source
        tree = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected `key: value` lines, found {type(tree).__name__}")
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; MissingError names the configs that are there."""
    try:
        return load_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        known = ", ".join(str(found) for found in sorted(Path("configs").glob("*.yaml")))
        raise MissingError(
            f"no config at {path}; here are: {known or 'none in configs/'}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from None


def apply_override(override: str, tree: dict[str, Any]) -> None:
    """Set one `key.path=value` in the tree; sections on the way are made."""
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"expected key.path=value, got {override!r}")
    *parents, leaf = path.split(".")
    node: Any = tree
    for parent in parents:
        node = _child(node, parent, override)
    try:
        node[_index(node, leaf, override)] = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"the value of {override!r} is not YAML") from None


def _child(node: Any, name: str, override: str) -> Any:
    key = _index(node, name, override)
    if isinstance(node, dict) and node.get(key) is None:
        node[key] = {}
    child = node[key]
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {override!r}: {name!r} holds a value, not a section")
    return child


def _index(node: Any, name: str, override: str) -> str | int:
    """A section's key, or the position in a list: `data.train.0.manifest=…`."""
    if isinstance(node, dict):
        return name
    if not name.isdecimal() or int(name) >= len(node):
        raise ConfigError(f"override {override!r}: expected 0 to {len(node) - 1}, got {name!r}")
    return int(name)
