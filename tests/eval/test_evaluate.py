"""Evaluation as a user meets it: results, the cache of features, and what is refused."""

import json
from pathlib import Path

import pytest

from mixer_dist.checkpoint.leases import LeaseWatch
from mixer_dist.config import Suite, load_suite
from mixer_dist.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingError,
    NumericsError,
    RefusedError,
)
from mixer_dist.eval import feature_cache, feature_set, features
from mixer_dist.eval.evaluate import evaluate, evaluate_suite
from mixer_dist.eval.subject import judged
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.run_dir import Attempt, RunDir, write_attempt
from mixer_dist.storage import Storage
from tests.data.handmade import flip_byte, write_dataset
from tests.eval.judged_run import NUM_TEST, run_of, samples, split, write_checkpoint

STORAGE = Storage()
FEWSHOT = {"kind": "fewshot", "shots": [1, 5]}
ALL = (FEWSHOT, {"kind": "knn", "k": 5}, {"kind": "linear"}, {"kind": "upstream"})


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint and a task of each kind."""
    config = run_of(tmp_path, *ALL)
    write_checkpoint(config)
    return config


def changed(config, task: int, **changes):
    """The run with another setting of a task."""
    evals = list(config.evals)
    evals[task] = evals[task].model_copy(update=changes)
    return config.model_copy(update={"evals": tuple(evals)})


def written(config, task: str) -> dict:
    return json.loads(Path(RunDir(config.run_dir).evaluation(task, 0)).read_text())


def evaluate_in_small_blocks(config) -> list[dict]:
    """All tasks on one rank, in blocks of which every rank gets some."""
    feature_set.BLOCK_IMAGES, features.BATCH_IMAGES = 7, 5
    return evaluate_suite(config, Suite(evals=config.evals))


def test_any_number_of_ranks_counts_the_same(ranks, tmp_path):
    """47 images, on 1 to 4 ranks: the same accuracies, and so the same counts, of every kind."""
    by_world, losses = [], []
    for world_size in (1, 2, 3, 4):
        config = run_of(tmp_path / str(world_size), *ALL)
        write_checkpoint(config)
        found = ranks.run(world_size, evaluate_in_small_blocks, config)
        assert all(of_rank == found[0] for of_rank in found)
        by_world.append({r["task"]: (r["per_seed"], r["num_judged"]) for r in found[0]})
        losses += [result["loss"] for result in found[0] if "loss" in result]
    assert by_world == [by_world[0]] * 4
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)
    for per_seed, num_judged in by_world[0].values():
        assert num_judged == NUM_TEST
        assert all(share * NUM_TEST == pytest.approx(round(share * NUM_TEST)) for share in per_seed)
        assert any(0 < share < 1 for share in per_seed)


def test_a_result_says_how_it_came_about(run):
    result = evaluate(run, "fewshot")
    assert written(run, "fewshot") == result
    assert result["accuracy"] == result["per_shots"]["5"]["accuracy"]
    assert result["per_seed"] == result["per_shots"]["5"]["per_seed"] and result["shots"] == 5
    assert len(result["per_shots"]["1"]["per_seed"]) == len(result["seeds"]) == 3
    assert result["config"]["shots"] == [1, 5] and len(result["checkpoint_sha256"]) == 64
    assert result["datasets"].keys() == {"train", "test"} and result["versions"]["torch"]
    assert result["standard_error"] > 0 and result["duration_s"] > 0


def test_the_next_task_computes_no_features_again(run, monkeypatch):
    evaluate(run, "fewshot")

    def computed_again(*_):
        raise AssertionError("features are computed again")

    monkeypatch.setattr(MlpMixer, "features", computed_again)
    for task in ("knn", "linear", "upstream"):
        assert 0 < evaluate(run, task)["accuracy"] <= 1
    with pytest.raises(AssertionError, match="computed again"):
        evaluate(changed(run, 1, name="larger", resize=9), "larger")


@pytest.mark.parametrize("kind", ["flipped", "cut"])
def test_damaged_features_are_never_used(run, kind):
    expected = evaluate(run, "knn")["accuracy"]
    part = next(Path(run.run_dir).glob("evals/features/*/part-*"))
    if kind == "cut":
        part.write_bytes(part.read_bytes()[:-4])
    else:
        flip_byte(part, -1)
        with pytest.raises(DataError, match="SHA-256 is wrong: the same command computes"):
            evaluate(run, "knn")
    assert evaluate(run, "knn")["accuracy"] == expected


def test_features_of_older_models_go(run, monkeypatch):
    monkeypatch.setattr(feature_cache, "KEPT_MODELS", 1)
    evaluate(run, "knn")
    before = {path.name for path in Path(run.run_dir).glob("evals/features/*")}
    evaluate(changed(run, 1, name="first"), "first", "untrained")
    after = {path.name for path in Path(run.run_dir).glob("evals/features/*")}
    assert len(before) == len(after) == 2 and not before & after


def test_the_checkpoint_is_held_meanwhile(run):
    watch, run_dir = LeaseWatch(STORAGE, RunDir(run.run_dir)), RunDir(run.run_dir)
    for checkpoint in (None, run_dir.checkpoint(0)):
        with judged(run, STORAGE, run_dir, checkpoint) as subject:
            assert subject.is_of_run and len(watch.holders(0)) == 1
        assert not watch.holders(0)


def test_a_checkpoint_that_is_deleted_meanwhile_is_a_line(run):
    run_dir = RunDir(run.run_dir)
    with judged(run, STORAGE, run_dir, None) as subject:
        next(Path(run_dir.checkpoint(0)).glob("*.safetensors")).unlink()
        with pytest.raises(CheckpointError, match=r"step-00000000 was removed while it was read"):
            subject.model()


def test_features_that_are_no_numbers_give_no_result(tmp_path):
    config = run_of(tmp_path, FEWSHOT)
    write_checkpoint(config, scale=1e30)
    with pytest.raises(NumericsError, match="features of 60 of 60 images are not finite"):
        evaluate(config, "fewshot")
    assert not list(Path(config.run_dir).glob("evals/**/*.*"))


def test_labels_that_several_images_share_count_each(tmp_path):
    """As ImageNet-ReaL: any label is right, and images without one do not count."""
    drawn = samples([0, 1, 2, 0, 1, 2], seed=2)
    labels = [[0, 1, 2], [0, 1, 2], [0, 1, 2], [], [], [0, 1, 2]]
    several = [
        (key, {"png": members["png"], "json": json.dumps({"labels": found}).encode()})
        for (key, members), found in zip(drawn, labels, strict=True)
    ]
    manifest = write_dataset(tmp_path / "real", [several], ("ant", "bee", "cat"))
    config = run_of(tmp_path, {"kind": "upstream", "test": manifest})
    write_checkpoint(config)
    result = evaluate(config, "upstream")
    assert result["accuracy"] == 1.0 and result["num_judged"] == 4 and result["num_test"] == 6
    knn = {"kind": "knn", "name": "near", "test": manifest}
    with pytest.raises(DataError, match="6 of 6 images have several or none"):
        evaluate(run_of(tmp_path, knn), "near")


def test_another_head_matters_to_upstream_tasks_only(run):
    other = run.model_copy(update={"model": run.model.model_copy(update={"num_classes": 7})})
    assert evaluate(other, "knn")["num_classes"] == 3
    assert evaluate(other, "upstream")["num_classes"] == 3


def test_a_head_that_does_not_fit_the_split_is_refused(tmp_path):
    config = run_of(tmp_path, {"kind": "upstream"}, model__num_classes=5)
    write_checkpoint(config)
    with pytest.raises(ConfigError, match=r"has a head of 5 classes, .* has 3"):
        evaluate(config, "upstream")


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1] * 9, ("ant", "bee", "cat"), "has no image of cat, which"),
        ([0, 1, 3] * 9, ("ant", "bee", "cat"), r"label 3 is not in 0\.\.2"),
        ([], ("ant", "bee", "cat"), "no samples in"),
        ([0, 1, 2] * 9, ("ant", "bee", "cow"), r"train has 3 classes \(ant, bee, cow…\)"),
    ],
)
def test_a_wrong_split_is_a_line_and_no_result(run, tmp_path, labels, classes, message):
    train = split(tmp_path / "wrong", labels, 1, classes)
    with pytest.raises((ConfigError, DataError), match=message):
        evaluate(changed(run, 0, train=train), "fewshot")
    assert not list(Path(run.run_dir).glob("evals/fewshot/*"))


def test_a_class_with_few_images_is_named(run, tmp_path, caplog):
    train = split(tmp_path / "rare", [0, 1] * 9 + [2] * 3, 1)
    evaluate(changed(run, 0, train=train), "fewshot")
    assert "fewer than 5 images of cat in" in caplog.text


def test_more_neighbours_than_images_are_refused(run):
    with pytest.raises(ConfigError, match=r"k is 999, and .* has \d+ images: lower k"):
        evaluate(changed(run, 1, k=999), "knn")


def test_results_that_cannot_be_compared_are_not_mixed(run, tmp_path):
    evaluate(run, "knn")
    before = written(run, "knn")
    test = split(tmp_path / "renamed", [0, 1, 2], 1, ("ant", "bee", "cow"))
    train = split(tmp_path / "renamed2", [0, 1, 2], 1, ("ant", "bee", "cow"))
    for other, difference in [
        (changed(run, 1, k=7), "other settings of the task"),
        (changed(run, 1, train=train, test=test), "datasets with other classes"),
        (changed(run, 1, test=run.evals[1].train), "other datasets"),
    ]:
        with pytest.raises(RefusedError, match=f"comes from {difference}, so that it cannot"):
            evaluate(other, "knn", "untrained")
    assert written(run, "knn") == before


def test_another_runs_results_are_left_alone(run):
    run_dir = RunDir(run.run_dir)
    attempt = Attempt(attempt=1, attempt_id="a", resumed_from=0, dataset="d", config=run)
    write_attempt(STORAGE, run_dir, attempt)
    evaluate(run, "knn")
    write_attempt(STORAGE, run_dir, attempt.model_copy(update={"attempt_id": "b"}))
    with pytest.raises(RefusedError, match="is of another run"):
        evaluate(run, "knn")


def test_what_belongs_to_another_run_is_told_and_not_kept(run, tmp_path, caplog):
    other = run_of(tmp_path / "other", *ALL)
    checkpoint = write_checkpoint(other, scale=2.0)
    result = evaluate(run, "knn", checkpoint)
    assert result["checkpoint"] == checkpoint
    assert f"not kept: this is no checkpoint of {run.run_dir}" in caplog.text
    assert not list(Path(tmp_path).glob("**/evals/knn/*.json"))


def test_splits_with_the_same_images_are_told(run, caplog):
    evaluate(run, "knn")
    assert "the same images" not in caplog.text
    evaluate(changed(run, 1, name="cheat", test=run.evals[1].train), "cheat")
    assert "train and test are the same images" in caplog.text


def test_a_suite_names_what_is_missing_and_runs_the_rest(run, tmp_path, caplog):
    file = tmp_path / "suite.yaml"
    file.write_text(
        "evals:\n"
        "  - {name: here, kind: knn, resize: 8, train: '{datasets}/train/manifest.json',"
        " test: '{datasets}/test/manifest.json'}\n"
        "  - {name: pets, kind: upstream, test: '{datasets}/pets/manifest.json'}\n"
    )
    suite = load_suite(file, f"{tmp_path}/data/")
    [result] = evaluate_suite(run, suite)
    assert result["task"] == "here" and 0 < result["accuracy"] <= 1
    assert f"pets is left out: no dataset at {tmp_path}/data/pets/manifest.json" in caplog.text
    with pytest.raises(MissingError, match="none of the suite's datasets"):
        evaluate_suite(run, load_suite(file, "nowhere"))


def test_a_seed_draws_the_untrained_model(run):
    first = evaluate(changed(run, 1, name="x"), "x", "untrained")
    other = run.model_copy(update={"seed": run.seed + 1})
    second = evaluate(changed(other, 1, name="y"), "y", "untrained")
    assert first["checkpoint_sha256"] != second["checkpoint_sha256"]
