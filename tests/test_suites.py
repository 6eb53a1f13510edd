"""Evaluation tasks of a configuration, and suites of them."""

from pathlib import Path

import pytest

from mixer_dist.config import load_config, load_suite, with_suite
from mixer_dist.errors import ConfigError
from tests.small_config import refused

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("name", "num_datasets"),
    [
        ("imagenet5", 5), ("imagenet5_finetune", 5),
        ("vtab1k", 19), ("vtab1k_finetune", 19), ("vtab1k_hyperrule", 19),
    ],
)  # fmt: skip
def test_suites_lie_below_the_root_that_is_given(small_config, name, num_datasets):
    suite = load_suite(ROOT / f"configs/suites/{name}.yaml", "s3://bucket/sets/")
    config = with_suite(
        load_config(small_config, ["evals=[{name: a, kind: upstream, test: b}]"]), suite
    )
    assert len(config.evals) == 1 + len(suite.evals)
    urls = {url for task in suite.evals for url in task.datasets.values()}
    assert all(url.startswith("s3://bucket/sets/") and "{" not in url for url in urls)
    assert len({url.rsplit("/", 2)[0] for url in urls}) == num_datasets


def test_a_task_of_a_suite_may_not_take_a_runs_name(small_config):
    suite = load_suite(ROOT / "configs/suites/imagenet5.yaml")
    taken = "evals=[{name: pets-linear, kind: knn, train: a, test: b}]"
    with pytest.raises(ConfigError, match="the name 'pets-linear' is given twice"):
        with_suite(load_config(small_config, [taken]), suite)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "{name: a, kind: nearest, train: b, test: c}",
            "'fewshot', 'knn', 'linear', 'finetune', 'upstream'",
        ),
        ("{name: a, train: b, test: c}", "evals.0.kind: required, but not given"),
        ("{name: a, kind: upstream, train: b, test: c}", "evals.0.train: unknown key"),
        ("{name: a, kind: knn, test: c}", "evals.0.train: required, but not given"),
        ("{name: features, kind: upstream, test: c}", "choose another name"),
        ("{name: a, kind: fewshot, train: b, test: c, shots: [5, 0]}", "evals.0.shots.1: must be"),
        ("{name: a, kind: linear, train: b, test: c, held_out: 1}", "evals.0.held_out: must be"),
    ],
)
def test_a_wrong_task_is_refused(small_config, task, message):
    assert message in "\n".join(refused(small_config, f"evals=[{task}]"))


def test_shots_are_a_number_or_several(small_config):
    task = "evals=[{{name: a, kind: fewshot, train: b, test: c, shots: {}}}]"
    found = [load_config(small_config, [task.format(shots)]).evals[0] for shots in ("10", "[1, 5]")]
    assert [each.shots for each in found] == [(10,), (1, 5)]
    assert [each.main_shots for each in found] == [10, 5]
