"""Describe the sections of a team file that need no resolving: tracking, retries, budget, prices."""

from __future__ import annotations

from pydantic import Field

from workers.config.strict import Name, Strict


class TrackingSpec(Strict):
    """Where a sweep is tracked.

    Attributes:
        uri: The tracking store; the home's by default.
        experiment: Name of the experiment; the team's by default.
        required: If True, an unreachable store stops the sweep; otherwise the sweep is tracked in the home.
    """

    uri: str | None = None
    experiment: str | None = None
    required: bool = True


class RecommendSpec(Strict):
    """How the recommended candidate is chosen.

    Attributes:
        tolerance: How much worse than the best a cheaper candidate may be: in nats for the metric nll, else as a share of the
            rows; 0.01 nats or 0.005 by default.
    """

    tolerance: float | None = Field(None, ge=0, le=10)


class Retries(Strict):
    """How often a training is retried, by cause; None means no limit.

    Attributes:
        errors: For any other error.
        preemptions: For machines that were drained or lost.
        oom: For trainings killed because the machine ran out of memory.
    """

    errors: int | None = Field(3, ge=0, le=10**4)
    preemptions: int | None = Field(None, ge=0, le=10**6)
    oom: int | None = Field(2, ge=0, le=10**4)

    def allows(self, cause: str, times: int) -> bool:
        """Return True if a training that failed `times` times for this cause is retried."""
        limit = {"errors": self.errors, "preemptions": self.preemptions, "oom": self.oom}[cause]
        return limit is None or times <= limit


class Checkpoint(Strict):
    """A training writes a checkpoint after an epoch, and within an epoch every so many minutes."""

    minutes: float = Field(5, gt=0, le=10**6)


class HeartbeatSpec(Strict):
    """A trainer silent for `seconds`, or without a finished step for `stall_minutes`, is ended and retried."""

    seconds: float = Field(60, gt=0, le=10**7)
    stall_minutes: float = Field(30, gt=0, le=10**6)


class Budget(Strict):
    """A limit. Once it is used up, no new training starts; running ones finish, and the finished members are fused.

    Attributes:
        max_hours: Wall-clock hours of one run of the command.
        max_cost: Cost of all runs together, in the unit of `prices`.
        price: The entry of `prices` that counts; required if there are several.
        head: Price of a cluster's head per hour, which runs as long as the sweep.
    """

    max_hours: float | None = Field(None, gt=0, le=10**6)
    max_cost: float | None = Field(None, gt=0, le=10**12)
    price: Name | None = None
    head: float | None = Field(None, ge=0, le=1e9)


class OwnServer(Strict):
    """A purchased machine, whose price is amortised over the hours of its trainers.

    Attributes:
        price: Purchase price.
        years: Years of use.
        use: Share of the hours in which it is busy.
        trainers: Number of concurrent trainers.
    """

    price: float = Field(gt=0, le=1e9)
    years: float = Field(3, ge=0.01, le=100)
    use: float = Field(0.3, ge=0.001, le=1)
    trainers: float = Field(1, ge=0.01, le=1e6)

    @property
    def trainer_hour_price(self) -> float:
        """The price per trainer-hour."""
        return self.price / (self.years * 365.25 * 24 * self.use * self.trainers)
