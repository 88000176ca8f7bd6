"""Describe the sections of a team file that are the same as written and as resolved: tracking, retries, budget, prices."""

from __future__ import annotations

from pydantic import Field

from workers.config.strict import Name, Strict


class TrackingSpec(Strict):
    """Where a sweep is tracked.

    Attributes:
        uri: The tracking store; the home's where left out.
        experiment: Name of the experiment; the team's where left out.
        required: Whether a store that is away stops the sweep. Otherwise the sweep is tracked in the home.
    """

    uri: str | None = None
    experiment: str | None = None
    required: bool = True  # false: where the server is away, track in the home and say so


class Retries(Strict):
    """How often a training is tried again, by cause; None is without limit.

    Attributes:
        errors: For any other error.
        preemptions: For machines that were drained or lost.
        oom: For trainings that were killed for the machine's memory.
    """

    errors: int | None = Field(3, ge=0, le=10**4)
    preemptions: int | None = Field(None, ge=0, le=10**6)  # drained and lost nodes
    oom: int | None = Field(2, ge=0, le=10**4)  # killed for the node's memory

    def allows(self, cause: str, times: int) -> bool:
        """Return whether a training that failed `times` times for this cause is tried again."""
        limit = {"errors": self.errors, "preemptions": self.preemptions, "oom": self.oom}[cause]
        return limit is None or times <= limit


class Checkpoint(Strict):
    """A training writes a checkpoint after an epoch, and within an epoch every so many minutes."""

    minutes: float = Field(5, gt=0, le=10**6)


class HeartbeatSpec(Strict):
    """A trainer that gives no sign of life for `seconds`, or finishes no step for `stall_minutes`, is ended and retried."""

    seconds: float = Field(60, gt=0, le=10**7)
    stall_minutes: float = Field(30, gt=0, le=10**6)


class Budget(Strict):
    """A limit. Once it is used up no new training starts; those that run end, and what there is is fused.

    Attributes:
        max_hours: Hours of one run of the command.
        max_cost: Cost of all runs together, in the unit of `prices`.
        price: Which of `prices` counts; needed where there are several.
    """

    max_hours: float | None = Field(None, gt=0, le=10**6)  # by the clock, of one run of the command
    max_cost: float | None = Field(None, gt=0, le=10**12)  # of all runs together, in the unit of `prices`
    price: Name | None = None  # which of `prices` counts; needed where there are several


class OwnServer(Strict):
    """A machine of one's own, whose trainers cost what its purchase comes to by amortisation.

    Attributes:
        price: What it cost.
        years: How long it is used.
        use: Share of the hours in which it works.
        trainers: Number of trainers at once.
    """

    price: float = Field(gt=0, le=1e9)
    years: float = Field(3, ge=0.01, le=100)
    use: float = Field(0.3, ge=0.001, le=1)  # share of the hours in which it works
    trainers: float = Field(1, ge=0.01, le=1e6)  # at once

    @property
    def trainer_hour_price(self) -> float:
        """The price of one trainer for an hour."""
        return self.price / (self.years * 365.25 * 24 * self.use * self.trainers)
