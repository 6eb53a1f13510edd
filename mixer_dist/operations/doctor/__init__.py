"""What may keep a run from going well on these machines, each finding with its mend."""

from mixer_dist.operations.doctor.examination import Examination, examination_lines, examine
from mixer_dist.operations.doctor.finding import Finding

__all__ = ["Examination", "Finding", "examination_lines", "examine"]
