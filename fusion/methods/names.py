"""List the fusions by name. Light to import: `validate` and `plan` read it."""

from __future__ import annotations

from typing import Literal, get_args

# In the order of inference cost: a later one must earn its place in the recommendation.
Fusion = Literal["student", "cascade", "vote", "vote_logits", "weighted", "stack", "stack_plain", "concat", "stack_bag"]
KNOWN: tuple[Fusion, ...] = get_args(Fusion)
DEFAULT: tuple[Fusion, ...] = ("vote", "weighted", "concat", "stack")
STACKS: tuple[Fusion, ...] = ("stack", "stack_plain", "stack_bag")  # learn from fold trainings
