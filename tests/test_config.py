"""A wrong configuration is answered at once and in full; a right one means what it says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mixer_dist.config import RunConfig, load_config
from mixer_dist.errors import ConfigError, MissingError
from mixer_dist.sections import dump_config, parse
from mixer_dist.yaml_tree import dump_yaml, load_yaml
from tests.small_config import SMALL, refused

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_the_project_loads(path):
    config = load_config(path)
    assert parse(RunConfig, load_yaml(dump_config(config), "dump"), "dump") == config


def test_there_are_configs():
    assert CONFIGS


def test_what_is_not_given_is_the_papers(small_config):
    config = load_config(small_config)
    assert config.optimizer.betas == (0.9, 0.999) and config.optimizer.max_grad_norm == 1.0
    assert config.augment.min_crop_area == 0.05 and config.augment.flip
    assert config.model.image_size == 224 and config.optimizer.warmup_steps == 0


def test_all_problems_are_told_at_once(small_config):
    small_config.write_text(
        SMALL.replace("total_steps: 100", "total_step: 100")
        .replace("global_batch_size: 32", "global_batch_size: 31")
        .replace("num_classes: 10", "num_classes: ten")
        .replace("learning_rate: 1e-3", "learning_rate: -1\n  moment: 0.9")
        .replace("variant: S/16", "variant: S/15")
    )
    found = refused(small_config)
    assert len(found) == 7
    for expected in [
        "total_steps: required, but not given",
        "total_step: unknown key; did you mean 'total_steps'?",
        "global_batch_size: must be even, because mixup mixes pairs of images (given: 31)",
        "model.variant: must be 'S/32', 'S/16'",
        "model.num_classes: must be a whole number",
        "optimizer.learning_rate: must be greater than 0 (given: -1)",
        "optimizer.moment: unknown key; did you mean 'momentum'?",
    ]:
        assert any(line.startswith(expected) for line in found), expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("modle.variant=S/16", "modle: unknown key; did you mean 'model'?"),
        ("model.varient=S/16", "model.varient: unknown key; did you mean 'variant'?"),
        ("data.train.0.repeat=2", "data.train.0.repeat: unknown key; did you mean 'repeats'?"),
        ("data.order.lane=2", "data.order.lane: unknown key; did you mean 'lanes'?"),
        (
            "storage={s3://b: {endpoint: x}}",
            "storage.s3://b.endpoint: unknown key; did you mean 'endpoint_url'?",
        ),
        (
            "evals=[{name: a, kind: fewshot, train: x, test: y, shot: 5}]",
            "evals.0.shot: unknown key; did you mean 'shots'?",
        ),
        ("zzz=1", "zzz: unknown key; known keys: run_dir, seed, total_steps"),
    ],
)
def test_a_misspelt_key_is_named_with_what_was_meant(small_config, override, expected):
    [line] = refused(small_config, override)
    assert line.startswith(expected)


def test_credentials_in_a_config_are_refused_and_not_repeated(small_config):
    [line] = refused(small_config, "storage={s3://b: {secret: hunter2}}")
    assert line.startswith("storage.s3://b.secret: unknown key; known keys: endpoint_url")
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("total_steps=200", 200),
        ("total_steps=1e3", 1000),
        ("optimizer.learning_rate=1e-3", 0.001),
        ("optimizer.learning_rate=3E-4", 0.0003),
        ("optimizer.weight_decay=1", 1.0),
        ("optimizer.betas=[0.8, 0.95]", (0.8, 0.95)),
        ("augment.flip=false", False),
        ("run_dir=s3://bucket/a=b.c", "s3://bucket/a=b.c"),
        ("run_dir=/tmp/run", "/tmp/run"),
        ("seed=18446744073709551615", 2**64 - 1),
        ("data.train.0.manifest=s3://bucket/manifest.json", "s3://bucket/manifest.json"),
        ("data.train.0.repeats=3", 3),
        ("data.order.lanes=4", 4),
        ("data.stages=[my.stage]", ("my.stage",)),
        ("model.image_size=448", 448),
        ("engine.name=zero2", "zero2"),
        ("model.variant=B/16", "B/16"),
    ],
)
def test_overrides_reach_every_value(small_config, override, value):
    path, _, _ = override.partition("=")
    found: Any = load_config(small_config, [override])
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    assert found == value and type(found) is type(value)


def test_overrides_apply_in_order_and_reach_into_lists(small_config):
    overrides = [
        "data.train=[{manifest: a}, {manifest: b}]",
        "data.train.1.repeats=2",
        "data.train.1.repeats=5",
        "optimizer={learning_rate: 0.1}",
        "optimizer.betas=[0.8, 0.9]",
        "optimizer.betas.1=0.95",
    ]
    config = load_config(small_config, overrides)
    assert [(entry.manifest, entry.repeats) for entry in config.data.train] == [("a", 1), ("b", 5)]
    assert config.optimizer.betas == (0.8, 0.95) and config.optimizer.learning_rate == 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("total_steps", "expected key.path=value, got 'total_steps'"),
        ("=5", "expected key.path=value"),
        ("total_steps.x=5", "'total_steps' holds a value, not a section"),
        ("data.train.1.manifest=x", "expected 0 to 0, got '1'"),
        ("data.train.first.manifest=x", "expected 0 to 0, got 'first'"),
        ("data.train.².manifest=x", "expected 0 to 0"),
        ("model={a: 1, a: 2}", "key 'a' is given twice"),
        ("model={a: [", "is not YAML"),
        ("optimizer.betas.1=0.95", "optimizer.betas: must be a list"),
        ("run_dir=", "run_dir: must be text"),
        ("run_dir=''", "run_dir: must not be empty"),
    ],
)
def test_a_wrong_override_is_refused(small_config, override, message):
    assert message in "\n".join(refused(small_config, override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("global_batch_size=31", "must be even"),
        ("global_batch_size=31.0", "must be even"),
        ("global_batch_size='31'", "must be even"),
        ("micro_batch_size=3", "positive even"),
        ("global_batch_size=0", "greater than 0"),
        ("global_batch_size=32.5", "must be a whole number"),
        ("micro_batch_size=64", "micro_batch_size (64) must be at most global_batch_size (32)"),
        ("optimizer.warmup_steps=100", "warmup_steps (100) must be below total_steps (100)"),
        ("optimizer.learning_rate=.nan", "finite number"),
        ("optimizer.learning_rate=.inf", "finite number"),
        ("optimizer.betas=[0.9, 1.0]", "less than 1"),
        ("optimizer.decay=step", "'linear', 'cosine' or 'staircase'"),
        ("augment.mixup=1.5", "must be 1 or less"),
        ("augment.min_crop_area=0", "greater than 0"),
        ("data.train=[]", "data.train: must have at least one entry"),
        ("model.image_size=225", "image_size (225) must be a multiple of 16"),
        ("model.hidden_dim=64", "variant S/16 fixes hidden_dim: remove them"),
        ("model.variant=", "give a variant"),
        ("seed=-1", "must be 0 or more"),
        ("engine.name=horovod", "'single', 'ddp'"),
        ("logging={tensorboard: true}\nrun_dir: x", "is not YAML"),
        (
            "storage={s3://b: {deadline_s: 400}}",
            "storage.s3://b.deadline_s (400) must be below engine.hang_timeout_s (300)",
        ),
    ],
)
def test_a_value_that_cannot_work_is_refused(small_config, override, message):
    assert message in "\n".join(refused(small_config, override))


def test_values_that_do_not_go_together_are_refused(small_config):
    task = "name: {}, kind: fewshot, train: a, test: b"
    twice = f"evals=[{{{task.format('x')}}}, {{{task.format('x')}}}]"
    assert "the name 'x' is given twice" in refused(small_config, twice)[0]
    assert "must match" in refused(small_config, f"evals=[{{{task.format('../x')}}}]")[0]
    cropped = f"evals=[{{{task.format('x')}, resize: 200}}]"
    assert (
        "resize (200) must be at least model.image_size (224)" in refused(small_config, cropped)[0]
    )
    no_seeds = f"evals=[{{{task.format('x')}, seeds: []}}]"
    assert "evals.0.seeds: must have at least one entry" in refused(small_config, no_seeds)[0]
    negative = f"evals=[{{{task.format('x')}, seeds: [-1]}}]"
    assert "must be 0 or more" in refused(small_config, negative)[0]
    board = ["logging.tensorboard=true", "run_dir=s3://bucket/run"]
    assert "tensorboard needs a local run_dir" in refused(small_config, *board)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "total_steps: 5\n", ":13: key 'total_steps' is given twice"),
        (SMALL + "  learning_rate: 5\n", ":13: key 'learning_rate' is given twice"),
        (SMALL.replace("model:", "model: ["), "is not YAML"),
        ("- a\n- b\n", "expected `key: value` lines, found list"),
        ("", "expected `key: value` lines, found NoneType"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not YAML"),
        ("? [a, b]\n: c\n", "is not YAML"),
        ("? {a: b}\n: c\n", "is not YAML"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("a: \x01\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    for path in (tmp_path / "latin.yaml", tmp_path):
        assert "cannot read the config" in refused(path)[0]


def test_a_missing_file_names_the_configs_that_are_there(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match=r"no config at x\.yaml; here are: none in configs/"):
        load_config("x.yaml")
    for name in ("b", "a"):
        (tmp_path / "configs" / f"{name}.yaml").touch()
    with pytest.raises(MissingError, match=r"here are: configs/a\.yaml, configs/b\.yaml$"):
        load_config("x.yaml")


def test_a_config_never_changes(small_config):
    config = load_config(small_config)
    for section, name in [(config, "seed"), (config.model, "num_classes"), (config.data, "train")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, getattr(section, name))
    assert isinstance(config.data.train, tuple)


scalars = st.floats(1e-300, 1e300, allow_nan=False) | st.floats(1e-9, 10)


@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(
    scalars,
    st.text(min_size=1).filter(lambda text: text.isprintable()),
    st.integers(0, 2**64 - 1),
    st.lists(st.from_regex(r"\A[a-z_.]{1,8}\Z"), max_size=3),
)
def test_what_is_dumped_loads_as_the_same(rate, run_dir, seed, stages):
    tree = yaml.safe_load(SMALL) | {"run_dir": run_dir, "seed": seed}
    tree["optimizer"] = {"learning_rate": rate, "epsilon": rate}
    tree["data"]["stages"] = stages
    config = parse(RunConfig, tree, "drawn")
    assert parse(RunConfig, load_yaml(dump_config(config), "dump"), "dump") == config


def test_a_config_is_read_without_torch(small_config):
    """So that --help and a wrong config answer at once."""
    script = (
        "import sys; from mixer_dist.config import load_config; load_config(sys.argv[1]); "
        "print(*{'torch', 'numpy', 'webdataset', 'deepspeed'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, str(small_config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("text", ["20091851514239e3", "1e5", "12", "on", "0x1f", "1_0", "-.5"])
def test_a_text_that_looks_like_a_number_is_a_text_when_it_is_read_again(text):
    assert load_yaml(dump_yaml({"id": text}), "here") == {"id": text}
