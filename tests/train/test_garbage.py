"""Garbage goes at fixed steps and at no other time, and memory can be freed all the same."""

import gc
import weakref

from mixer_dist.train.garbage import EVERY_STEPS, GarbageCollection
from mixer_dist.train.micro_batch import free_memory


class Knot:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self):
        self.itself = self


def test_it_is_collected_at_fixed_steps_only():
    with GarbageCollection() as garbage:
        found = weakref.ref(Knot())
        for step in range(1, EVERY_STEPS):
            for _ in range(1000):  # from which on Python would collect by itself
                Knot()
            garbage.step_done(step)
        assert found() is not None
        garbage.step_done(EVERY_STEPS)
        assert found() is None
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_what_was_there_before_can_be_freed():
    found = [Knot()]
    seen = weakref.ref(found[0])
    with GarbageCollection():
        found.clear()
        free_memory()
        assert seen() is None
