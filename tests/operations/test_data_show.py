"""What `data show` prints of a step is what the run reads at that step."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_dist import cli
from mixer_dist.data.stream import Cursor
from tests.data.handmade import batches_of, flip_byte, good_sample, stream_config, write_dataset

ROOT = Path(__file__).resolve().parents[2]
STEP = 9


@pytest.fixture
def arguments(digits, tmp_path) -> list[str]:
    """The quickstart's run on the training digits, not begun yet."""
    manifest = digits / "train" / "manifest.json"
    return [
        str(ROOT / "configs/quickstart.yaml"), f"run_dir={tmp_path / 'run'}",
        f"data.train.0.manifest={manifest}", "global_batch_size=20", "micro_batch_size=4",
    ]  # fmt: skip


def show(capsys, tmp_path: Path, *arguments: str) -> tuple[dict, Path]:
    sheet = tmp_path / "sheets" / "sheet.png"
    argv = ["data", "show", *arguments, "--step", str(STEP), "--output", str(sheet), "--json"]
    assert cli.main(argv) == 0
    return json.loads(capsys.readouterr().out), sheet


def test_the_images_of_a_step_are_named(capsys, tmp_path, arguments, digits):
    found, sheet = show(capsys, tmp_path, *arguments)
    assert [row["position"] for row in found["images"]] == list(range(160, 180))
    for row in found["images"]:
        assert row["key"].startswith(f"{row['labels'][0]}/")  # a digit's class is its folder
        assert row["names"] == [str(row["labels"][0])]
        assert Path(row["shard"]).parent == digits / "train"
    assert Image.open(sheet).size[0] > 5 * 32
    assert np.asarray(Image.open(sheet)).std() > 10  # not blank


def test_lines_name_them_too(capsys, tmp_path, arguments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "show", *arguments, "--step", "1", "--images", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("step 1: 20 images") and "wrote step-00000001.png" in out
    assert len(out.splitlines()) == 20 + 3
    assert (tmp_path / "step-00000001.png").exists()


def test_a_run_that_has_begun_shows_its_own_order(capsys, tmp_path, ranks, arguments):
    """The order is fixed at the first start, whatever the configuration says by now."""
    begun = [*arguments, "data.order.lanes=5", "total_steps=4", "optimizer.warmup_steps=1"]
    assert ranks.run(1, cli.main, ["pretrain", *begun]) == [0]
    same = ["total_steps=4", "optimizer.warmup_steps=1"]
    argv = ["data", "show", *arguments, *same, "--step", "3", "--output", str(tmp_path / "x.png")]
    assert cli.main([*argv, "--json"]) == 0
    keys = [row["key"] for row in json.loads(capsys.readouterr().out)["images"]]
    elsewhere = [*arguments, *same, "data.order.lanes=5", f"run_dir={tmp_path / 'other'}"]
    assert cli.main(["data", "show", *elsewhere, *argv[-4:], "--json"]) == 0
    assert [row["key"] for row in json.loads(capsys.readouterr().out)["images"]] == keys
    assert cli.main([*argv[:2], *arguments, *same, "seed=9", *argv[-4:]]) == 2
    assert "holds a run that began otherwise: seed: 0 -> 9" in capsys.readouterr().err


def test_a_stand_in_is_told(capsys, tmp_path):
    manifest = write_dataset(tmp_path / "shards", [[good_sample(n) for n in range(12)]])
    begins = np.fromfile(tmp_path / "shards/shard-000000.idx", "<u8,<u4,<u4")["f0"]
    flip_byte(tmp_path / "shards/shard-000000.tar", int(begins[5]) + 600)
    config = stream_config(manifest, run_dir=str(tmp_path / "run"))
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    steps = {}
    for step in (1, 2):
        argv = ["data", "show", str(tmp_path / "config.yaml"), "--step", str(step)]
        assert cli.main([*argv, "--output", str(tmp_path / "x.png"), "--json"]) == 0
        steps[step] = json.loads(capsys.readouterr().out)["images"]
    rows = [row for of_step in steps.values() for row in of_step]
    [stand_in] = [row for row in rows if row["stands_in_for"]]
    assert stand_in["stands_in_for"] == "s005" and stand_in["key"] == f"s{stand_in['index']:03}"
    batches = batches_of(config, 2, Cursor())
    assert [row["key"] for row in rows] == [key for batch in batches for key in batch.keys]


@pytest.mark.parametrize("step", ["0", "-1", "100000"])
def test_a_step_that_is_none_of_the_run_is_refused(capsys, tmp_path, arguments, step):
    assert cli.main(["data", "show", *arguments, "--step", step]) == 2
    assert "--step must be in 1.." in capsys.readouterr().err
