"""Who still lives: a connection from each rank to rank 0, by which all end as soon as one is gone.

A collective that waits for a dead rank ends after minutes, or never where a GPU waits.
"""

from mixer_dist.liveness.peers import Peers, peers_watched
from mixer_dist.liveness.standing import Ending, Standing

__all__ = ["Ending", "Peers", "Standing", "peers_watched"]
