"""What a machine computes with, and how a difference is told."""

import json
import subprocess
import sys

import pytest
import torch

from workers.runtime.environment import differences, environment


def test_the_same_machine_does_not_differ() -> None:
    here = environment()
    assert here["torch"] == torch.__version__
    assert {"python", "code", "numpy", "safetensors"} <= set(here)
    code = "import json; from workers.runtime.environment import environment; print(json.dumps(dict(environment())))"
    elsewhere = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert differences(here, elsewhere) == [], "another process, which did not import torch"


def test_a_difference_is_named_with_both_sides() -> None:
    here = environment()
    other = {**here, "torch": "2.13.0"}
    assert differences(here, other) == [f"torch is 2.13.0, and {here['torch']} at the head"]
    assert differences({k: v for k, v in here.items() if k != "numpy"}, here) == [
        f"numpy is {here['numpy']}, and missing at the head"
    ]


@pytest.mark.parametrize(("head", "there", "told"), [({}, {"device": "T4"}, 0), ({"device": "A10"}, {"device": "T4"}, 1)])
def test_a_head_needs_no_gpu(head: dict[str, str], there: dict[str, str], told: int) -> None:
    assert len(differences({"python": "3.11", **head}, {"python": "3.11", **there})) == told
