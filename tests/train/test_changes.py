"""Every key of a configuration is free, changes by name, or never does; each is told with why."""

from collections.abc import Iterator
from typing import Any

import pytest

from mixer_dist.config import RunConfig
from mixer_dist.errors import ConfigError
from mixer_dist.run_dir import Attempt
from mixer_dist.sections import Section
from mixer_dist.train.changes import (
    RULES,
    changes_since,
    check_allowed,
    check_named,
    keeping_order,
    rule_key,
)
from tests.tiny import tiny_config

BEGUN = tiny_config("ddp", data={"train": [{"manifest": "old"}], "order": {"lanes": 4}})
STEP = 20


def leaves(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys that hold no section themselves."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def given(**values: Any) -> RunConfig:
    """The run's configuration with other values, by dotted key with `__` for dots."""
    tree = BEGUN.model_dump(mode="json")
    for path, value in values.items():
        *sections, leaf = path.split("__")
        node = tree
        for name in sections:
            node = node[name]
        node[leaf] = value
    return RunConfig.model_validate(tree)


def check(config: RunConfig, *named: str, dataset: str = "same") -> list[tuple[str, Any, Any]]:
    """What is recorded as (key, old, new), when `named` is allowed."""
    begun = Attempt(attempt=1, attempt_id="1", resumed_from=0, dataset="same", config=BEGUN)
    changes = changes_since(begun, config, dataset, STEP)
    check_allowed(changes, named, "runs/x")
    assert all(change.step == STEP for change in changes)
    return [(change.key, change.old, change.new) for change in changes]


def test_every_key_falls_under_exactly_one_rule():
    keys = [*leaves(RunConfig), "dataset"]
    assert "optimizer.betas" in keys and "data.order.lanes" in keys
    for key in keys:
        fitting = [known for known in RULES if f"{key}.".startswith(f"{known}.")]
        assert len(fitting) == 1, f"{key} needs one rule in RULES, has {fitting}"
        assert rule_key(key) == fitting[0]
    for known in RULES:
        assert any(f"{key}.".startswith(f"{known}.") for key in keys), f"{known} is no key"


@pytest.mark.parametrize(
    "values",
    [
        {"run_dir": "elsewhere"},
        {"storage": {"s3://": {"region": "x"}}},
        {"data__train": [{"manifest": "moved"}]},
        {"micro_batch_size": 10},
        {"engine__name": "zero2", "engine__precision": "bf16"},
        {"data__num_threads": 3, "data__prefetch_batches": 5, "data__max_bad_fraction": 0.5},
        {"checkpoint__every_steps": 7, "logging__every_steps": 7, "max_consecutive_skips": 2},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_says_how_a_run_is_carried_out_is_free(values):
    assert check(given(**values)) == []


@pytest.mark.parametrize(
    ("values", "named", "recorded"),
    [
        ({"total_steps": 60}, "total_steps", ("total_steps", 40, 60)),
        ({"global_batch_size": 44}, "global_batch_size", ("global_batch_size", 20, 44)),
        (
            {"optimizer__learning_rate": 1e-3},
            "optimizer.learning_rate",
            ("optimizer.learning_rate", 3e-3, 1e-3),
        ),
        (
            {"optimizer__weight_decay": 0.2},
            "optimizer.weight_decay",
            ("optimizer.weight_decay", 0.1, 0.2),
        ),
        ({"augment__mixup": 0.1}, "augment", ("augment.mixup", 0.5, 0.1)),
        (
            {"augment__randaugment": {"magnitude": 10}},
            "augment",
            ("augment.randaugment", None, {"layers": 2, "magnitude": 10}),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_changes_the_run_from_here_on_has_to_be_named(values, named, recorded):
    key, old, new = recorded
    with pytest.raises(ConfigError) as caught:
        check(given(**values))
    line = str(caught.value)
    assert f"trained otherwise up to step {STEP}: {key}: {old} -> {new} (" in line
    assert f"add --change {named}," in line and "\n" not in line
    assert check(given(**values), named) == [recorded]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"seed": 9}, "seed: 0 -> 9 (the order of the data and every random draw come from it)"),
        ({"model__hidden_dim": 32}, "model.hidden_dim: 30 -> 32 (the weights and moments"),
        ({"data__order": {"lanes": 5}}, "data.order.lanes: 4 -> 5 (another order would"),
        ({"data__order": {"lanes": 4, "window": 9}}, "data.order.window: None -> 9"),
        ({"loss": "softmax"}, "loss: sigmoid -> softmax"),
        ({"optimizer__betas": [0.9, 0.95]}, "optimizer.betas: [0.9, 0.999] -> [0.9, 0.95]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_make_it_another_run_is_refused_even_if_named(values, told):
    named = [*RULES]
    with pytest.raises(ConfigError) as caught:
        check(given(**values), *named)
    line = str(caught.value)
    assert line.startswith(f"runs/x holds a run that began otherwise: {told}")
    assert line.endswith("Give it the old values, or choose another run_dir")


def test_other_data_are_refused_wherever_they_lie():
    with pytest.raises(ConfigError, match=r"dataset: same -> other \(the images or labels"):
        check(given(), *RULES, dataset="other")


def test_naming_one_change_allows_no_other():
    config = given(total_steps=60, global_batch_size=44)
    with pytest.raises(ConfigError, match="add --change global_batch_size,") as caught:
        check(config, "total_steps")
    assert "total_steps: 40" not in str(caught.value)
    assert len(check(config, "total_steps", "global_batch_size")) == 2


def test_naming_what_does_not_differ_is_no_mistake():
    """The command of a requeued job still names what the job before has changed."""
    assert check(given(), "total_steps", "augment") == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("total_step", "one of total_steps, optimizer.learning_rate, .* got 'total_step'"),
        ("seed", "seed cannot change in a run that has begun: the order of the data"),
        ("engine", "engine needs no --change: it says how steps are computed"),
        ("total_steps=60", "got 'total_steps=60'"),
    ],
)
def test_what_cannot_be_named_is_told(name, told):
    with pytest.raises(ConfigError, match=told):
        check_named(["augment", name])


def test_an_order_that_is_not_given_is_the_runs_own():
    config = given(data__order={}, global_batch_size=44)
    assert config.data.order.lanes is None
    kept = keeping_order(config, BEGUN)
    assert kept.data.order.lanes == 4
    assert [key for key, _, _ in check(kept, "global_batch_size")] == ["global_batch_size"]
