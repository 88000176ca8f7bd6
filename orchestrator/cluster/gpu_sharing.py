"""How many trainings share a GPU, for each kind of training."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.config.job import Job
from workers.runtime.gpu_probe import Sharing

ALONE = Sharing(1, "")


@dataclass
class GpuSharing:
    """What is known of trainings that leave the number of GPUs open. Each kind is alone on its GPU until it was probed.

    Attributes:
        known: How many share a GPU, by the kind of training.
    """

    known: dict[str, Sharing] = field(default_factory=dict)

    def of(self, job: Job) -> Sharing:
        """Return how many trainings like a job share a GPU."""
        return self.known.get(kind_of(job), ALONE) if is_open(job) else ALONE

    def lower(self, job: Job) -> None:
        """Let one training less share a GPU, because the memory of the GPU was too small."""
        fewer = max(1, self.of(job).trainings - 1)
        self.known[kind_of(job)] = Sharing(fewer, f"{fewer + 1} ran out of the GPU's memory")


def is_open(job: Job) -> bool:
    """Return whether a job leaves the number of GPUs open. A student does not: its teachers are there only later."""
    return job.recipe.resources.gpus is None and job.recipe.resources.processes == 1 and not job.teachers


def kind_of(job: Job) -> str:
    """Return what trainings have in common that take as long for a step, and as much memory."""
    recipe, train = job.recipe, job.train
    network = (recipe.arch, recipe.width, recipe.stem, job.data.size, max(1, len(recipe.packed)))
    return " ".join(str(part) for part in (*network, train.batch_size, train.accumulate, train.precision, train.compile))
