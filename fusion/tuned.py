"""concat_tuned: concat whose members' last stages move too, and pay like the head for the distance to where they were.

Minimise the mean NLL on *fuse* of the concatenated head over the last stages' features, plus penalty times the squared
distance of both to their start (L2-SP: Li, Grandvalet and Davoine 2018): of a stage's tensors relative to their size, of the head
in standardised features. An infinite penalty, one of the candidates, is the calibrated logit vote. Batch statistics stay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.concat import start
from fusion.outputs import Evidence, Floats, Labels, Table, log_softmax, softmax
from fusion.shrunken import Problem
from fusion.stages import features
from workers.errors import ConclaveError

PENALTIES = (float("inf"), 1.0, 0.1, 0.01)
EPOCHS, BATCH, RATE = 3, 128, 3e-4
HELD_OUT = 0.2  # of the rows, to choose the penalty by


class ConcatTuned:
    """Attributes after fit: `penalty_`, `stages_` (a module a member), `coef_` (C, sum of D_m) and `intercept_` (C,)."""

    def __init__(self, penalty: float | None = None) -> None:
        self.penalty = penalty

    def fit(self, evidence: Evidence) -> Self:
        if not evidence.stages:
            raise ConclaveError("concat_tuned needs ResNets: it trains their last stage and their head.")
        rows = np.arange(len(evidence.fuse.labels))
        self.penalty_ = self._best(evidence, rows) if self.penalty is None else self.penalty
        self.stages_, self.coef_, self.intercept_ = _Training(evidence, rows).run(self.penalty_)
        return self

    @staticmethod
    def _best(evidence: Evidence, rows: Labels) -> float:
        """The strongest of those with the lowest NLL on a fifth of the rows, by a training on the others."""
        kept, out = train_test_split(rows, test_size=HELD_OUT, random_state=0, stratify=_or_none(evidence.fuse.labels))
        training, losses = _Training(evidence, kept), {}
        held = evidence.fuse.take(out)
        for penalty in PENALTIES:
            stages, coef, intercept = training.run(penalty)
            log_p = log_softmax(features(stages, held.stages) @ coef.T + intercept)
            losses[penalty] = -float(log_p[np.arange(len(out)), held.labels].mean())
        return min(losses, key=lambda penalty: (losses[penalty], -penalty))

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return softmax(features(self.stages_, table.stages) @ self.coef_.T + self.intercept_)


def _or_none(labels: Labels) -> Labels | None:
    """Labels to stratify by, where the rows held out suffice for one of each class."""
    counts = np.bincount(labels)
    return labels if counts.min() >= 2 and len(labels) * HELD_OUT >= len(counts) else None


class _Training:
    """Trainings on the same rows, from the same start."""

    def __init__(self, evidence: Evidence, rows: Labels) -> None:
        self.evidence, part = evidence, evidence.fuse.take(rows)
        self.labels = torch.from_numpy(part.labels)
        self.inputs = [torch.from_numpy(np.ascontiguousarray(x)).float() for x in part.stages]
        self.problem = Problem(features(evidence.stages, part.stages), part.labels, start(evidence))

    def run(self, penalty: float) -> tuple[list[nn.Module], Floats, Floats]:
        """The stages, and the head on raw features, where this penalty ends."""
        stages = [copy.deepcopy(stage).eval() for stage in self.evidence.stages]
        if math.isinf(penalty):
            return stages, self.problem.coef, self.problem.intercept
        moved = nn.Parameter(torch.zeros(self.problem.shape))
        pulled = [(p, p.detach().clone(), 2 * penalty / _size(p)) for stage in stages for p in stage.parameters()]
        pulled.append((moved, torch.zeros_like(moved), 2 * penalty))
        optimizer = torch.optim.Adam([p for p, _, _ in pulled], RATE, fused=True)
        steps = EPOCHS * math.ceil(len(self.labels) / BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for rows in self._batches():
            loss = F.cross_entropy(self._logits(stages, moved, rows), self.labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for one in pulled:
                _pull(*one)
            optimizer.step()
            schedule.step()
        coef, intercept = self.problem.head(moved.detach().double().numpy())
        return stages, coef, intercept

    def _batches(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(EPOCHS):
            yield from torch.split(torch.randperm(len(self.labels), generator=generator), BATCH)

    def _logits(self, stages: Sequence[nn.Module], moved: Tensor, rows: Tensor) -> Tensor:
        """By the head at its start, plus its move in standardised features."""
        x = torch.cat([stage(inputs[rows]) for stage, inputs in zip(stages, self.inputs, strict=True)], 1)
        base = x @ _float(self.problem.coef).T + _float(self.problem.intercept)
        standardised = (x - _float(self.problem.mean)) / _float(self.problem.scale)
        return base + standardised @ moved[:, :-1].T + moved[:, -1]


def _float(values: Floats) -> Tensor:
    return torch.from_numpy(np.asarray(values)).float()


def _size(tensor: Tensor) -> float:
    return max(float(tensor.detach().square().sum()), 1e-12)


@torch.no_grad()
def _pull(tensor: nn.Parameter, start: Tensor, strength: float) -> None:
    """Add the gradient of half the strength times the squared distance: by autograd it would cost as much as the network does."""
    assert tensor.grad is not None
    tensor.grad.add_(tensor - start, alpha=strength)
