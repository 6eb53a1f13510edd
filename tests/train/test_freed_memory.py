"""What a step on a CPU frees is there for the next one, without the kernel."""

import subprocess
import sys

import pytest

MEGABYTES = 192
STEP = f"""
import resource, torch
from mixer_dist.train.freed_memory import keep_freed_memory
def step():
    tensors = [torch.ones({MEGABYTES // 3} * 2**18) for _ in range(3)]
def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
KEEP
for _ in range(8):  # until it has what a step needs, one beside the other
    step()
began = page_faults()
step()
print(page_faults() - began)
"""


@pytest.mark.parametrize(
    ("keep", "is_kept"), [("assert keep_freed_memory()", True), ("", False)], ids=["kept", "not"]
)
def test_memory_of_the_last_step_is_taken_again(keep, is_kept):
    code = [sys.executable, "-c", STEP.replace("KEEP", keep)]
    num_faults = int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)
    num_pages = MEGABYTES * 2**20 // 4096
    assert num_faults < num_pages / 100 if is_kept else num_faults > num_pages / 2
