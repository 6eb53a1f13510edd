"""What of a run may change between its starts: freely, once `--change` names it, or never.

A start is compared with the attempt that wrote the checkpoint it resumes from. Where an older
checkpoint has to do, changes made after it are undone with it and have to be named again.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from mixer_dist.config import RunConfig
from mixer_dist.errors import ConfigError
from mixer_dist.run_dir import Attempt, Change

LONGEST_VALUE = 48  # of an old or a new value, in a message


class Rule(NamedTuple):
    """Whether a key, or all keys of a section, may change, and why."""

    freedom: Literal["free", "named", "fixed"]
    """`named` keys change only where `--change` names them, and that is recorded."""
    reason: str


def _each(keys: str, freedom: Literal["free", "named", "fixed"], reason: str) -> dict[str, Rule]:
    return dict.fromkeys(keys.split(), Rule(freedom, reason))


RULES: dict[str, Rule] = {
    **_each("run_dir storage data.train umask", "free",
            "where files lie is no part of a run; data are compared by content"),
    **_each("engine micro_batch_size data.num_threads data.prefetch_batches", "free",
            "it says how steps are computed, not what they give"),
    **_each("checkpoint logging evals pool", "free", "it says what is written down on the way"),
    **_each("max_consecutive_skips data.max_bad_fraction", "free", "it says when to give up"),
    **_each("data.skip_steps", "free", "what it leaves out is recorded by itself"),
    **_each("numerics.replica_check", "free", "it looks and changes nothing"),
    **_each("total_steps", "named", "the learning rate falls until then"),
    **_each("optimizer.learning_rate optimizer.warmup_steps optimizer.decay "
            "optimizer.end_learning_rate", "named", "the learning rate follows it at every step"),
    **_each("optimizer.weight_decay optimizer.max_grad_norm optimizer.epsilon", "named",
            "every further update is made with it"),
    **_each("augment data.stages", "named", "it decides the pixels of all further images"),
    **_each("global_batch_size", "named",
            "the data go on at the same position, in batches of the new size"),
    **_each("numerics.spike_z numerics.on_spike numerics.window", "named",
            "it decides which updates are made"),
    **_each("seed", "fixed", "the order of the data and every random draw come from it"),
    **_each("dataset", "fixed", "the images or labels that data.train leads to are other ones"),
    **_each("data.order", "fixed", "another order would repeat some samples and miss others"),
    **_each("model", "fixed", "the weights and moments were trained as those of the other model"),
    **_each("loss", "fixed", "the classifier was trained under the other one"),
    **_each("init_from", "fixed", "the run began with the weights that it named"),
    **_each("optimizer.name", "fixed", "the moments are those of the other optimizer"),
    **_each("init_head", "fixed", "the run began with the classifier that it chose"),
    **_each("optimizer.betas optimizer.momentum", "fixed",
            "the moments were averaged with the old ones"),
}  # fmt: skip
"""By key, or by section for all its keys; `dataset` is the fingerprint of the data."""


def rule_key(key: str) -> str:
    """The key under which RULES has a rule for a configuration's key."""
    return next(known for known in RULES if f"{key}.".startswith(f"{known}."))


def check_named(names: Sequence[str]) -> None:
    """ConfigError where `--change` names what needs no naming, cannot change or is no key."""
    may_be_named = [key for key, rule in RULES.items() if rule.freedom == "named"]
    for name in names:
        if name in may_be_named:
            continue
        rule = RULES.get(name)
        means = {"free": "needs no --change", "fixed": "cannot change in a run that has begun"}
        why = f"{name} {means[rule.freedom]}: {rule.reason}" if rule else f"got {name!r}"
        raise ConfigError(f"expected --change with one of {', '.join(may_be_named)}; {why}")


def keeping_order(config: RunConfig, begun: RunConfig) -> RunConfig:
    """The configuration, with the run's order of samples where it gives none."""
    given = config.data.order.model_dump(exclude_none=True)
    order = begun.data.order.model_copy(update=given)
    return config.model_copy(update={"data": config.data.model_copy(update={"order": order})})


def changes_since(begun: Attempt, config: RunConfig, dataset: str, step: int) -> list[Change]:
    """What differs from an attempt and is not free, as changes at a step."""
    old = begun.config.model_dump(mode="json") | {"dataset": begun.dataset}
    new = config.model_dump(mode="json") | {"dataset": dataset}
    return [Change(step=step, key=key, old=a, new=b) for key, a, b in _differences(old, new)]


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) of what differs and is not free."""
    if old == new or (path in RULES and RULES[path].freedom == "free"):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{path}.{key}" if path else key
            yield from _differences(old.get(key), new.get(key), inner)
    else:
        yield path, old, new


def check_same_run(changes: Sequence[Change], run_dir: str) -> None:
    """ConfigError where a change would make it another run."""
    fixed = [change for change in changes if RULES[rule_key(change.key)].freedom == "fixed"]
    if fixed:
        raise ConfigError(
            f"{run_dir} holds a run that began otherwise: {'; '.join(map(_reasoned, fixed))}. "
            "Give it the old values, or choose another run_dir"
        )


def check_allowed(changes: Sequence[Change], named: Sequence[str], run_dir: str) -> None:
    """ConfigError where a change would make it another run, or is not named."""
    check_same_run(changes, run_dir)
    unnamed = [change for change in changes if rule_key(change.key) not in named]
    if unnamed:
        keys = dict.fromkeys(rule_key(change.key) for change in unnamed)
        raise ConfigError(
            f"{run_dir} was trained otherwise up to step {unnamed[0].step}: "
            f"{'; '.join(map(_reasoned, unnamed))}. If that is meant, add "
            f"{' '.join(f'--change {key}' for key in keys)}, else give it the old values"
        )


def in_words(change: Change) -> str:
    """A change as `key: old -> new`."""
    return f"{change.key}: {_shown(change.old)} -> {_shown(change.new)}"


def _reasoned(change: Change) -> str:
    return f"{in_words(change)} ({RULES[rule_key(change.key)].reason})"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
