"""Which slow ranks are named, and how often."""

from mixer_dist.train.stragglers import NamedStragglers, stragglers

FAST, SLOW = [0.010, 0.010, 0.010], [0.010, 0.030, 0.010]
FED = [0.0, 0.0, 0.0]


def test_a_rank_is_named_when_it_stays_slow_and_then_not_at_every_report():
    named = NamedStragglers()
    once = [named.new(stragglers(compute_s, FED)) for compute_s in (SLOW, FAST, SLOW, FAST)]
    assert once == [[], [], [], []]
    found = [[s.rank for s in named.new(stragglers(SLOW, FED))] for _ in range(13)]
    assert found == [[], [1], *[[]] * 9, [1], []]
