"""A report over one run or several: what it reads, chooses and writes.

It reads what trainer and evaluations left in run directories, and changes nothing of that; it may
pin a checkpoint.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mixer_dist.errors import MissingError
from mixer_dist.eval.report.best import Criterion
from mixer_dist.eval.report.chosen import Chosen, choose, pinned
from mixer_dist.eval.report.comparison import comparison_page, comparison_sections
from mixer_dist.eval.report.history import History, read_history
from mixer_dist.eval.report.records import Row, result_rows, run_row, to_csv
from mixer_dist.eval.report.run_page import run_page, run_sections
from mixer_dist.eval.report.scalars import Sinks
from mixer_dist.metrics import to_json_line
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage, join

OUT = "report"  # of several runs


@dataclass(frozen=True)
class Wanted:
    """What a report is to do besides its page."""

    out: str | None = None
    """Folder or URL: by default report/ in the run directory, of several runs in this folder."""
    criterion: Criterion | None = None
    """By which the best checkpoint is chosen."""
    is_pinned: bool = False
    """Keep that checkpoint for good."""
    sinks: Sinks = field(default_factory=Sinks)


@dataclass(frozen=True)
class Report:
    """What was written, and what it says."""

    page: str
    """Its URL."""
    files: dict[str, str]
    """URLs of everything that was written, by name."""
    runs: list[Row]
    num_evaluations: int
    missing: list[str]
    """Runs that left nothing to report, a sentence each."""


def write_report(storage: Storage, run_dirs: Sequence[str], wanted: Wanted) -> Report:
    """Write a run's report, or a comparison of several; MissingError where there is nothing."""
    runs, missing = _read(storage, run_dirs)
    wanted.sinks.check(runs)
    chosen = _chosen(storage, runs, wanted)
    rows = [run_row(history, name) | _best(chosen.get(name)) for name, history in runs.items()]
    results = [row for name, history in runs.items() for row in result_rows(history, name)]
    files = dict(_tables(rows, results)) | _pages(runs, missing, chosen, len(run_dirs) > 1)
    urls = _write(storage, wanted.out or _place(run_dirs), files)
    wanted.sinks.write(storage, runs)
    return Report(urls["index.html"], urls, rows, len(results), missing)


def _read(storage: Storage, run_dirs: Sequence[str]) -> tuple[dict[str, History], list[str]]:
    """Runs by name, and a sentence for each that left nothing; MissingError where none did."""
    names = _names(run_dirs)
    found: dict[str, History] = {}
    missing: list[str] = []
    for url in names:
        try:
            found[names[url]] = read_history(storage, RunDir(url))
        except MissingError as error:
            missing.append(str(error))
    if not found:
        raise MissingError("; ".join(missing))
    return found, missing


def _names(run_dirs: Sequence[str]) -> dict[str, str]:
    """The last part of each URL where that tells them apart, else all of it."""
    urls = list(dict.fromkeys(url.rstrip("/") for url in run_dirs))
    short = [url.rpartition("/")[2] for url in urls]
    return dict(zip(urls, short if len(set(short)) == len(urls) else urls, strict=True))


def _chosen(storage: Storage, runs: Mapping[str, History], wanted: Wanted) -> dict[str, Chosen]:
    """The best checkpoint of each run that has one; RefusedError."""
    if not wanted.criterion:
        return {}
    found = choose(runs, wanted.criterion)
    return pinned(storage, found) if wanted.is_pinned else found


def _best(chosen: Chosen | None) -> Row:
    """What a run's row says of its chosen checkpoint."""
    if not chosen:
        return {}
    measure = chosen.measure
    return {
        "best": {
            "criterion": str(chosen.criterion),
            "step": chosen.evaluation.step,
            "value": measure.value,
            "standard_error": measure.standard_error,
            "checkpoint": chosen.checkpoint,
            "is_pinned": chosen.is_pinned,
        }
    }


def _tables(runs: Sequence[Row], results: Sequence[Row]) -> Iterator[tuple[str, bytes]]:
    tree = {"runs": runs, "results": results}
    yield "results.json", (json.dumps(tree, indent=1) + "\n").encode()
    if results:
        yield "results.csv", to_csv(results)


def _pages(
    runs: Mapping[str, History], missing: Sequence[str], chosen: Mapping[str, Chosen], several: bool
) -> dict[str, bytes]:
    """The page, its pictures, and of a single run the merged metrics."""
    if several:
        sections = comparison_sections(runs, missing, chosen)
        files = {"index.html": comparison_page(runs, sections).encode()}
    else:
        [(name, history)] = runs.items()
        sections = run_sections(history)
        files = {
            "metrics.jsonl": "".join(map(to_json_line, history.lines)).encode(),
            "index.html": run_page(history, sections, chosen.get(name)).encode(),
        }
    return files | {name: png for section in sections for name, png in section.files.items()}


def _write(storage: Storage, folder: str, files: Mapping[str, bytes]) -> dict[str, str]:
    """The page last, so that what it names is there; URLs by name."""
    urls = {name: join(folder, name) for name in files}
    for name in sorted(files, key=lambda name: name == "index.html"):
        storage.write(urls[name], files[name])
    return urls


def _place(run_dirs: Sequence[str]) -> str:
    return RunDir(run_dirs[0]).report if len(run_dirs) == 1 else OUT
