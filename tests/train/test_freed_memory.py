"""What a step on a CPU frees is there for the next one, until it is given back."""

import subprocess
import sys

import pytest

MEGABYTES = 192
CODE = f"""
import psutil, torch
from mixer_dist.train.freed_memory import give_back_freed_memory, keep_freed_memory
def step():
    tensors = [torch.ones({MEGABYTES // 3} * 2**18) for _ in range(3)]
def resident_bytes():
    return psutil.Process().memory_info().rss
KEEP
before = resident_bytes()
step()
after_step = resident_bytes()
give_back_freed_memory()
print(after_step - before, resident_bytes() - before)
"""


@pytest.mark.parametrize(
    ("keep", "is_kept"), [("assert keep_freed_memory()", True), ("", False)], ids=["kept", "not"]
)
def test_memory_of_a_step_stays_until_it_is_given_back(keep, is_kept):
    code = [sys.executable, "-c", CODE.replace("KEEP", keep)]
    printed = subprocess.run(code, capture_output=True, text=True, check=True).stdout
    after_step, given_back = (int(number) / 2**20 for number in printed.split())
    assert after_step > 0.9 * MEGABYTES if is_kept else after_step < 0.1 * MEGABYTES
    assert given_back < 0.1 * MEGABYTES
