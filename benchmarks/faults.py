"""python benchmarks/faults.py: what a fault of the network or the store does to training's data.

600 digits in small shards lie in OpenStack Swift; a proxy before it breaks what a client asks for.
For each fault one epoch is read by TrainStream, and by plain webdataset as its users do: the same
samples, an error that names the place, or something else? Prints a Markdown table; ends with 1
where TrainStream gives other samples without a word, or an error that does not name the URL.
"""

import argparse
import logging
import os
import re
import secrets
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.fault_cases import NUM_KEYS, Case, Place, access_key, cases
from benchmarks.fault_readers import (
    NUM_SAMPLES,
    SIZE_PX,
    Client,
    Outcome,
    mixer_dist,
    plain_webdataset,
    timed,
)
from data_tools import sample_data, shard
from mixer_dist.data.manifest import load_dataset
from tests.fault_proxy import serve_faults
from tests.swift import serve_swift

KEY = "test:key"
SHARD_MB = "0.1"


def main() -> int:
    """Read under every fault; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    only = parser.parse_args().only
    logging.getLogger("mixer_dist").propagate = False
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, dataset_in_swift(Path(folder)) as place:
        clean = [timed(client, place, do_nothing, 0) for client in (mixer_dist, plain_webdataset)]
        place.victim = late_shard(place)
        print("\n| fault | mixer_dist | s | requests | webdataset 1.0.2 | s |")
        print("|---|---|---|---|---|---|")
        return max(print_row(case, place, *clean) for case in cases() if only in case.name)


def do_nothing() -> None:
    """What happens midway where nothing does."""


@contextmanager
def dataset_in_swift(folder: Path) -> Iterator[Place]:
    """The digits as JPEG, in shards, behind a proxy."""
    secret = secrets.token_hex(16)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": secret, "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    (folder / "swift").mkdir()
    write_images(folder / "images")
    keys = [access_key(number) for number in range(NUM_KEYS)]
    with (
        serve_swift(folder / "swift", key=KEY, secret=secret, others=keys) as swift,
        serve_faults(swift.endpoint_url) as proxy,
    ):
        url = f"{swift.new_bucket()}/digits"
        options = ["--shard-mb", SHARD_MB, "--endpoint-url", swift.endpoint_url]
        if shard.main([str(folder / "images" / "train"), url, *options]):
            raise SystemExit("no shards")
        dataset = load_dataset(swift.storage(), [(f"{url}/manifest.json", 1)])
        yield Place(swift, proxy, url, tuple(part.url for part in dataset.parts))


def write_images(folder: Path) -> None:
    """Some of each class, as JPEG, in which a flipped bit is not an error but another pixel."""
    sample_data.write_digits(folder / "all", size_px=SIZE_PX)
    for source in sorted((folder / "all" / "train").iterdir()):
        target = folder / "train" / source.name
        target.mkdir(parents=True)
        for path in sorted(source.iterdir())[: NUM_SAMPLES // 10]:
            image = Image.open(path).convert("RGB")
            image.save(target / f"{path.stem}.jpg", quality=90)


def late_shard(place: Place) -> str:
    """One that both clients still need after a quarter of the run, but that ours has begun."""
    asked = [one.path.rpartition("/")[2] for one in place.proxy.exchanges if ".tar" in one.path]
    names = sorted(set(asked))
    late = names[len(names) // 2 :]
    ours = asked[: -len(names)]  # webdataset asked for each once, after that
    return max(late, key=lambda name: len(ours) - ours[::-1].index(name) - ours.index(name))


def print_row(case: Case, place: Place, ours: Outcome, theirs: Outcome) -> int:
    """Read twice under a fault; 1 where that shows a fault of ours."""
    found = outcome(case, mixer_dist, place)
    other = outcome(case, plain_webdataset, place)
    said, is_fine = verdict(found, ours, place)
    print(
        f"| {case.name} | {said} | {found.seconds:.1f} | {found.num_requests} "
        f"| {their_verdict(other, theirs)} | {other.seconds:.1f} |",
        flush=True,
    )
    return int(not is_fine)


def outcome(case: Case, client: Client, place: Place) -> Outcome:
    """One client's, with everything mended afterwards."""
    original = place.read()

    def midway() -> None:
        if case.midway:
            case.midway(place)

    try:
        with case.during(place):
            if case.before:
                case.before(place)
            return timed(client, place, midway, case.pause_s)
    finally:
        place.proxy.heal()
        place.write(original)


def verdict(found: Outcome, clean: Outcome, place: Place) -> tuple[str, bool]:
    """What our client did, in words, and whether that is right."""
    if found.error:
        names_it = place.folder in found.error and "\n" not in found.error
        return f"stopped: {shown(found.error, place)}", names_it
    if found.found == clean.found:
        return "same samples", True
    num_other = sum(a != b for a, b in zip(found.found, clean.found, strict=False))
    if found.replaced and num_other <= found.replaced and len(found.found) == len(clean.found):
        line = next(line for line in found.warnings if line.startswith("bad sample"))
        return f"{found.replaced} sample replaced, and said so: {shown(line, place)}", True
    return f"**SILENT DIFFERENCE** in {num_other} batches", False


def their_verdict(found: Outcome, clean: Outcome) -> str:
    """What webdataset gave, in words."""
    total = len(clean.found)
    right = len(set(found.found) & set(clean.found))
    wrong = len(found.found) - right
    given = f"{right} of {total} samples" + (f" and {wrong} wrong" if wrong else "")
    if not found.error:
        is_silent = right < total or wrong
        return f"{'**' if is_silent else ''}{given}, normal return{'**' if is_silent else ''}"
    code = re.search(r"exit \d+", found.error)
    return f"{given}, {f'curl: {code[0]}' if code else found.error}"


def shown(line: str, place: Place) -> str:
    """A line for a table, without the bucket's random name."""
    return line.replace(place.folder, "s3://…").replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
