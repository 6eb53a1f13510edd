"""python benchmarks/fewshot.py: k-shot evaluation beside scikit-learn's Ridge, and checked.

First against an independent solve in float64 (one stacked least-squares problem), with more and
with fewer images than features: chosen images and accuracies must be equal. Then beside
scikit-learn, in one process, by turns, in CPU-seconds: 1,000 classes, 1,280 features, 50,000 test
images. Prints Markdown; ends with 1 where a result differs, the ratio falls below 1, or memory
exceeds 2 GiB. Takes 10 minutes of CPU.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn
from sklearn.linear_model import Ridge

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from mixer_dist.eval.feature_set import in_memory
from mixer_dist.eval.fewshot import chosen_examples, fewshot_accuracies

SHOTS, SEEDS, L2 = (1, 5, 10, 25), (0, 1, 2), 2.0**10
BIAS, EPSILON = 100.0, 1e-5
NUM_CLASSES, NUM_FEATURES, NUM_TEST = 1000, 1280, 50_000
POOL_SHOTS = 30  # images a class of the pool
NUM_ROUNDS = 5
SPEED_BAR, MEMORY_BAR_BYTES = 1.0, 2 * 2**30

Split = tuple[np.ndarray, np.ndarray]  # features (N, C) float32, labels (N,)
Cases = dict[tuple[int, int], float]  # accuracy by shots and seed


def main() -> int:
    """Print every table; the exit code."""
    if sys.argv[1:] == ["--memory"]:
        return print_peak_memory()
    print(f"NumPy {np.__version__}, scikit-learn {sklearn.__version__}\n")
    is_right = compare_solves()
    return int(not (is_right & compare_speed()))


def drawn(num_images: int, num_features: int, num_classes: int, seed: int) -> Split:
    """Noise around one centre a class, far enough from each other for some to be told apart."""
    centres = np.random.default_rng(99).normal(size=(num_classes, num_features))
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % num_classes
    noise = rng.standard_normal((num_images, num_features), np.float32)
    noise *= (num_features / 64) ** 0.25 * 2.8
    noise += centres[labels]
    return noise, labels


def compare_solves() -> bool:
    """The table of cases that an independent solve was given too; whether all are equal."""
    print("| images | features | cases | chosen images equal | accuracies equal | accuracy |")
    print("|---|---|---|---|---|---|")
    is_equal = True
    for num_features in (64, 640):
        train, test = drawn(3000, num_features, 100, 1), drawn(5000, num_features, 100, 2)
        found = fewshot_accuracies(in_memory(*train), in_memory(*test), SHOTS, SEEDS, L2)
        for shots in SHOTS:
            cases = [(shots, seed) for seed in SEEDS]
            same = [has_same_choice(train[1], *case) for case in cases]
            equal = [reference_accuracy(train, test, *case) == found[case] for case in cases]
            is_equal &= all(same) and all(equal)
            mean = statistics.mean(found[case] for case in cases)
            print(
                f"| {100 * shots} | {num_features} | {len(cases)} | {sum(same)} | {sum(equal)} "
                f"| {mean:.1%} |"
            )
    print()
    return is_equal


def has_same_choice(labels: np.ndarray, shots: int, seed: int) -> bool:
    """Whether the chosen images are those of the reference."""
    expected = reference_choice(labels, shots, seed)
    return np.array_equal(chosen_examples(labels, shots, seed), expected)


def reference_choice(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Class by class, from one generator."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.permutation(np.where(labels == c)[0])[:shots] for c in range(labels.max() + 1)]
    )


def whitened(few: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Features as the k images say, with the constant column, in float64."""
    mean, std = few.mean(0, dtype=np.float64), few.std(0, dtype=np.float64) + EPSILON
    return np.c_[(features - mean) / std, np.full(len(features), BIAS)]


def reference_accuracy(train: Split, test: Split, shots: int, seed: int) -> float:
    """Ridge regression as plain least squares, sqrt(l2) times the identity stacked below."""
    few = reference_choice(train[1], shots, seed)
    x = whitened(train[0][few], train[0][few])
    targets = 2.0 * np.eye(train[1].max() + 1)[train[1][few]] - 1.0
    stacked = np.vstack([x, L2**0.5 * np.eye(x.shape[1])])
    wanted = np.vstack([targets, np.zeros((x.shape[1], targets.shape[1]))])
    weights = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    scores = whitened(train[0][few], test[0]) @ weights
    return float((scores.argmax(1) == test[1]).mean())


def compare_speed() -> bool:
    """The table of CPU-seconds; whether the bars are met."""
    train, test = large_problem()
    print("| cases | ours, CPU-s | Ridge, CPU-s | ratio | same accuracies |\n|---|---|---|---|---|")
    is_met = True
    for name, shots, seeds, num_rounds in (
        ("5 shots, 1 seed", (5,), (0,), NUM_ROUNDS),
        ("1, 5, 10, 25 shots, 3 seeds", SHOTS, SEEDS, 1),
    ):
        rounds = [
            (timed(lambda: ours(train, test, shots, seeds)),  # noqa: B023, called at once
             timed(lambda: ridges(train, test, shots, seeds)))  # noqa: B023
            for _ in range(num_rounds)
        ]  # fmt: skip
        ratio = statistics.median(theirs[0] / mine[0] for mine, theirs in rounds)
        is_same = all(mine[1] == theirs[1] for mine, theirs in rounds)
        mine_s, theirs_s = (statistics.median(r[side][0] for r in rounds) for side in (0, 1))
        print(f"| {name} | {mine_s:.1f} | {theirs_s:.1f} | {ratio:.2f} | {is_same} |", flush=True)
        is_met &= is_same and ratio >= SPEED_BAR
    return is_met & (peak_memory() <= MEMORY_BAR_BYTES)


def large_problem() -> tuple[Split, Split]:
    """The pool and the test split."""
    pool = drawn(NUM_CLASSES * POOL_SHOTS, NUM_FEATURES, NUM_CLASSES, 1)
    return pool, drawn(NUM_TEST, NUM_FEATURES, NUM_CLASSES, 2)


def ours(train: Split, test: Split, shots: tuple[int, ...], seeds: tuple[int, ...]) -> Cases:
    """Every case in one pass."""
    return fewshot_accuracies(in_memory(*train), in_memory(*test), shots, seeds, L2)


def ridges(train: Split, test: Split, shots: tuple[int, ...], seeds: tuple[int, ...]) -> Cases:
    """The same with one Ridge a case."""
    return {(k, seed): ridge(train, test, k, seed) for k in shots for seed in seeds}


def ridge(train: Split, test: Split, shots: int, seed: int) -> float:
    """As a user of scikit-learn would write it."""
    few = reference_choice(train[1], shots, seed)
    targets = 2.0 * np.eye(NUM_CLASSES)[train[1][few]] - 1.0
    pool = train[0][few]
    model = Ridge(alpha=L2, fit_intercept=False).fit(whitened(pool, pool), targets)
    return float((model.predict(whitened(pool, test[0])).argmax(1) == test[1]).mean())


def timed(action: Callable[[], Cases]) -> tuple[float, Cases]:
    """CPU-seconds of this process, all threads, and what came out."""
    began = time.process_time()
    found = action()
    return time.process_time() - began, found


def peak_memory() -> int:
    """Bytes that a process of its own takes at most for all cases, imports and features too."""
    command = [sys.executable, __file__, "--memory"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    num_bytes = int(done.stdout)
    print(f"\nPeak memory, all cases, features included: {num_bytes / 2**30:.2f} GiB")
    return num_bytes


def print_peak_memory() -> int:
    """The child's part of `peak_memory`."""
    ours(*large_problem(), SHOTS, SEEDS)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    print(int(line.split()[1]) * 1024)
    return 0


if __name__ == "__main__":
    sys.exit(main())
