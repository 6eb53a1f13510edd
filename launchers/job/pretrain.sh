# What happens in a job that trains, on its first node.

# shellcheck source=launchers/job/ranks.sh
source "$code/launchers/job/ranks.sh"
# shellcheck source=launchers/job/environment.sh
source "$code/launchers/job/environment.sh"
# shellcheck source=launchers/job/nodes.sh
source "$code/launchers/job/nodes.sh"
# shellcheck source=launchers/job/allocation.sh
source "$code/launchers/job/allocation.sh"
# shellcheck source=launchers/job/restarts.sh
source "$code/launchers/job/restarts.sh"

trap ask_to_stop USR2
trap note_the_end TERM
refuse_lost_options
refuse_wrong_tasks
take_snapshot
use_snapshot
resolve_config "${SLURM_NTASKS:-1}"
list_nodes
set_environment
train
