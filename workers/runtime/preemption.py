"""Watch for a spot machine's interruption notice, and drain its Ray node. Runs next to Ray on such a machine.

After the notice no job starts here; the scheduler makes running jobs write a checkpoint and resume elsewhere. EC2 gives the
notice two minutes ahead: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html

    python -m workers.runtime.preemption [--address URL] [--node-id ID] [--every SECONDS]
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

METADATA_ADDRESS = "http://169.254.169.254"  # instance metadata service of every EC2 machine
TOKEN_SECONDS = 300
WARNING_SECONDS = 120  # EC2's notice period


def seconds_left(address: str) -> int | None:
    """Return the seconds until this machine is interrupted, or None without a notice.

    Args:
        address: URL of the instance metadata service.

    Raises:
        OSError: If the service does not answer.
    """
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
    token = _fetch(urllib.request.Request(f"{address}/latest/api/token", method="PUT", headers=headers))
    headers = {"X-aws-ec2-metadata-token": token}
    try:
        notice = json.loads(_fetch(urllib.request.Request(f"{address}/latest/meta-data/spot/instance-action", headers=headers)))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    try:
        deadline = datetime.fromisoformat(notice["time"])
    except (KeyError, TypeError, ValueError):
        return WARNING_SECONDS
    return max(0, round((deadline - datetime.now(UTC)).total_seconds()))


def drain(seconds: int, node: str | None) -> None:
    """Drain a Ray node with Ray's own command: the node with this id, or by default this machine's."""
    words = ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot interruption by the provider"]
    words += ["--deadline-remaining-seconds", str(seconds), *(["--node-id", node] if node else [])]
    subprocess.run([sys.executable, "-P", "-m", "ray.scripts.scripts", *words], check=True)


def main() -> None:
    """Wait for the notice, drain the node, and exit."""
    parser = argparse.ArgumentParser(prog="python -m workers.runtime.preemption")
    parser.add_argument("--address", default=METADATA_ADDRESS)
    parser.add_argument("--node-id")
    parser.add_argument("--every", type=float, default=5.0)
    options = parser.parse_args()
    while True:
        try:
            left = seconds_left(options.address)
        except (OSError, ValueError):
            left = None  # no answer: not an EC2 machine, or a temporary failure
        if left is not None:
            print(f"this machine will be interrupted in {left} s", flush=True)
            return drain(left, options.node_id)
        time.sleep(options.every)


def _fetch(request: urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=2) as answer:
        return str(answer.read().decode())


if __name__ == "__main__":
    main()
