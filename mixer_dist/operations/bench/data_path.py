"""The config's own data path, without training: read, decode, augment, collate."""

import time

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.run_data import training_data
from mixer_dist.data.stream import Cursor
from mixer_dist.operations.bench.measured import Figure, Measured
from mixer_dist.progress import watch
from mixer_dist.storage import Storage
from mixer_dist.train.build import build_stream


def measure_data(config: RunConfig, num_steps: int) -> Measured:
    """The first batches of the run, from opening the stream to its end.

    All ranks must call this.
    """
    storage = Storage(config.storage)
    dataset = training_data(config, storage)
    short = config.model_copy(update={"total_steps": num_steps})
    began, cpu_began = time.perf_counter(), time.process_time()
    num_images = num_bad = 0
    with build_stream(short, dataset, storage, Cursor()) as stream:
        for batch in watch(stream, num_steps, "batches"):
            num_images += int((batch.positions >= 0).sum())
            num_bad += len(batch.bad_samples)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    total, all_cpu_s, all_bad = distributed.sum_over_ranks([num_images, cpu_s, num_bad])
    slowest_s = max(distributed.gather(seconds))
    sample_bytes = dataset.num_bytes / dataset.num_samples
    per_core_s = total / all_cpu_s
    return Measured(
        f"Data: {total:,.0f} images of {sample_bytes / 1e3:,.0f} KB at {config.model.image_size} "
        f"px, {distributed.world_size()} ranks with {distributed.num_cores()} cores each.",
        (
            Figure("images_per_s", "images, by the wall clock", total / slowest_s, "/s"),
            Figure("images_per_core_s", "images a second of a core's time", per_core_s, "/s"),
            Figure("bytes_per_s", "read", total * sample_bytes / slowest_s, "MB/s", 1e6),
            Figure("num_bad_samples", "damaged samples", all_bad),
        ),
        {"images_per_core_s": per_core_s, "sample_bytes": sample_bytes},
    )
