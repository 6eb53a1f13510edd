"""Sections of plain data with a type for each field: configuration, manifests, records.

What is wrong with one is said all at once, each problem in a line that tells what to do.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic import ConfigDict as PydanticConfig

from mixer_dist.errors import ConfigError, redacted
from mixer_dist.yaml_tree import dump_yaml

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]


def _without_secret(url: str) -> str:
    if redacted(url) != url:
        raise ValueError(
            "must hold no password or signature, as it is recorded with the run: give credentials "
            "through the AWS chain, those of a proxy in the variable HTTPS_PROXY"
        )
    return url


Url = Annotated[str, Field(min_length=1), AfterValidator(_without_secret)]
"""Where something lies; who may read it is said elsewhere."""

QUOTE = "'"

_EXPECTED = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "literal_error": "must be {expected}",
    "model_type": "must be keys with values",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "tuple_type": "must be a list, in brackets",
    "union_tag_invalid": "{tag!r} is none of {expected_tags}",
}
"""Problems in words of YAML, where pydantic has those of Python."""

T = TypeVar("T")


def not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    """A validator; min_length would also complain where an entry has another fault."""
    if not values:
        raise ValueError("must have at least one entry")
    return values


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change."""

    model_config = PydanticConfig(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Section)


def parse(section: type[S], tree: Any, source: str) -> S:
    """Check a plain tree against a section; ConfigError lists every problem at once."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(section, problem) for problem in error.errors()]
        if len(problems) == 1:
            raise ConfigError(f"{source}: {problems[0]}") from None
        lines = [f"{source}: {len(problems)} problems", *problems]
        raise ConfigError("\n  ".join(lines)) from None


def dump_config(config: Section) -> str:
    """The configuration as YAML that load_config reads back."""
    return dump_yaml(config.model_dump(mode="json"))


def _explain(section: type[Section], problem: Any) -> str:
    path, holders = _place(section, problem["loc"])
    where = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_suggest(path[-1], holders)}"
    if problem["type"] == "missing":
        return f"{where}: required, but not given"
    if problem["type"] == "union_tag_not_found":
        return f"{where}.{problem['ctx']['discriminator'].strip(QUOTE)}: required, but not given"
    expected = _EXPECTED.get(problem["type"], "").format(**problem.get("ctx", {}))
    message = expected or problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, dict | Section) else f" (given: {given!r})"
    return f"{where + ': ' if where else ''}{message}{shown}"


def _suggest(name: str, holders: Sequence[type[Section]]) -> str:
    known = [field for section in holders for field in section.model_fields]
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _place(
    section: type[Section], loc: Sequence[str | int]
) -> tuple[list[str], list[type[Section]]]:
    """A problem's path as the user wrote it, and the section that holds the last name.

    pydantic puts the kind of a section into the path where there are several kinds.
    """
    path: list[str] = []
    inner = holders = [section]
    for name in loc:
        kinds = [each for each in inner if len(inner) > 1 and _is_of_kind(each, name)]
        if kinds:
            inner = kinds
            continue
        path.append(str(name))
        holders = inner
        fields = [each.model_fields[name] for each in inner if name in each.model_fields]
        inner = [found for field in fields for found in _sections_in(field.annotation)] or inner
    return path, holders


def _is_of_kind(section: type[Section], kind: str | int) -> bool:
    return any(kind in get_args(field.annotation) for field in section.model_fields.values())


def _sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold, itself or in a tuple or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections_in(part)]
