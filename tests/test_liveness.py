"""Who waits for whom is told from where each rank stands."""

import pytest

from mixer_dist.liveness.standing import Standing, hang

HOSTS = [f"n{rank // 2}" for rank in range(6)]
COMPUTING = Standing(41, "step")


@pytest.mark.parametrize(
    ("standings", "ranks", "told"),
    [
        (
            {**dict.fromkeys(range(6), COMPUTING), 3: Standing(41, "data")}, (3,),
            ("rank 3 (host n1) is waiting for the data of step 41",
             "ranks 0-2, 4, 5 wait for that, computing step 41"),
        ),
        (
            dict.fromkeys([0, 1, 2, 4], COMPUTING), (3, 5),
            ("ranks 3, 5 do not answer", "ranks 0-2, 4 wait for that, computing step 41"),
        ),
        (
            {**dict.fromkeys(range(6), Standing(41, "save")), 0: Standing(40, "report"),
             5: Standing(41, "data")}, (0,),
            ("rank 0 (host n0) is reporting step 40",
             "ranks 1-4 wait for that, saving step 41",
             "rank 5 (host n2) waits for that, waiting for the data of step 41"),
        ),
        (
            dict.fromkeys(range(6), COMPUTING), (),
            ("all 6 ranks are computing step 41: a collective does not end",),
        ),
    ],
)  # fmt: skip
def test_who_waits_for_whom(standings, ranks, told):
    ending = hang(300, standings, HOSTS)
    assert (ending.reason, ending.ranks, ending.exit_code) == (
        f"no step for 300 s: {'; '.join(told)}",
        ranks,
        1,
    )


def test_one_process_alone():
    assert hang(300, {0: Standing(0, "start")}, ["n0"]).reason.endswith(
        "rank 0 (host n0) is starting"
    )
