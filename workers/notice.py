"""Runs beside Ray on a spot machine: polls the provider's notice that the machine is taken away, and drains the Ray node.

From then on no job starts here, and the supervisor has those that run write a checkpoint and go on elsewhere. The notice is
EC2's: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html, two minutes ahead.

    python -m workers.notice [--address URL] [--node-id ID] [--every SECONDS]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

ADDRESS = "http://169.254.169.254"  # of the instance metadata service, on every EC2 machine
TOKEN_SECONDS = 300
WARNING_SECONDS = 120  # that EC2 gives


def seconds_left(address: str) -> int | None:
    """Until the machine is taken away; None where nobody said so. Raises OSError where nobody answers."""
    asked = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
    token = _ask(urllib.request.Request(f"{address}/latest/api/token", method="PUT", headers=asked))
    headers = {"X-aws-ec2-metadata-token": token}
    try:
        notice = json.loads(_ask(urllib.request.Request(f"{address}/latest/meta-data/spot/instance-action", headers=headers)))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    try:
        at = datetime.fromisoformat(notice["time"])
    except (KeyError, TypeError, ValueError):
        return WARNING_SECONDS
    return max(0, round((at - datetime.now(UTC)).total_seconds()))


def drain(left: int, node: str | None) -> None:
    """By Ray's own command; of the node on this machine where none is named."""
    words = ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the provider takes it away"]
    words += ["--deadline-remaining-seconds", str(left), *(["--node-id", node] if node else [])]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.notice")
    parser.add_argument("--address", default=ADDRESS)
    parser.add_argument("--node-id")
    parser.add_argument("--every", type=float, default=5.0)
    given = parser.parse_args()
    while True:
        try:
            left = seconds_left(given.address)
        except (OSError, ValueError):
            left = None  # nobody answers: not such a machine, or not for the moment
        if left is not None:
            print(f"this machine is taken away in {left} s", flush=True)
            return drain(left, given.node_id)
        time.sleep(given.every)


def _ask(request: urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=2) as answer:
        return str(answer.read().decode())


if __name__ == "__main__":
    main()
