"""Build the images for real, without a container engine, and use them: `python -m benchmarks.images BASE`. Linux, root, buildah.

BASE is a tar of a Debian root file system, as of `debootstrap --variant=minbase bookworm`. `--pip` names a pip.conf for the
builds, and `--volume` a folder that they may see: a machine's own package index is no part of an image.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result

ROOT = Path(__file__).parent.parent
BASE, TRAINER, TRACKING = "localhost/conclave-base", "localhost/conclave:cuda", "localhost/conclave-tracking"
NOTEBOOK = "localhost/conclave-notebook:cuda"
DEMO = "conclave sweep /usr/share/conclave/examples/digits.yaml --home /tmp/demo --json"
WAITED = "& for i in $(seq 100); do sleep 1; python3 -c '{}' && exit 0; done; exit 1"
SERVER = "timeout 120 conclave server --home /tmp/tracking "
ASK = 'import http.client as h; c = h.HTTPConnection("127.0.0.1", {}, timeout=4); c.request("GET", "/health"); c.getresponse()'


def buildah(*words: str, **env: str) -> str:
    """With the settings that need no engine and no kernel module. Raises with what it said."""
    without = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}  # where nothing else is said
    process = subprocess.run(
        ["buildah", *words], env={**without, **os.environ, **env}, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise SystemExit(
            f"buildah {' '.join(words[:3])}: exit {process.returncode}\n{process.stdout[-3000:]}\n{process.stderr[-3000:]}"
        )
    return process.stdout


def base(tar: Path) -> None:
    container = buildah("from", "scratch").strip()
    buildah("add", container, str(tar), "/")
    buildah("commit", "--rm", container, BASE)


def build(name: str, file: str, pip: Path | None, volumes: list[str], *more: str) -> dict[str, Any]:
    """Seconds to build, and megabytes."""
    began = time.monotonic()
    secret = [f"--secret=id=pip,src={pip}"] if pip else []
    seen = [f"--volume={volume}" for volume in volumes]
    buildah(
        "bud", "--pull-never", "--build-arg", f"BASE={BASE}", *secret, *seen, *more,
        "--ignorefile", str(ROOT / ".dockerignore"), "--file", str(ROOT / "docker" / file), "--tag", name, str(ROOT),
    )  # fmt: skip
    seconds = time.monotonic() - began
    [image] = json.loads(buildah("images", "--json", name))
    return {"seconds": round(seconds), "size": image["size"]}


def run(name: str, command: str, **env: str) -> tuple[float, str]:
    """Seconds, and what it printed, in a container that is thrown away."""
    container = buildah("from", "--pull-never", name).strip()
    try:
        began = time.monotonic()
        settings = [f"--env={key}={value}" for key, value in env.items()]
        out = buildah("run", "--isolation", "chroot", *settings, container, "--", "bash", "-c", command)
        return time.monotonic() - began, out
    finally:
        buildah("rm", container)


def predict_probabilities(image: str, port: int, more: str = "") -> float:
    """Seconds until the tracking server of an image answers."""
    command = f"{SERVER} --port {port} {more} {WAITED.format(ASK.format(port))}"
    return round(run(image, command, MLFLOW_AUTH_ADMIN_PASSWORD="x" * 16)[0], 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images")
    parser.add_argument("base", type=Path)
    parser.add_argument("--pip", type=Path)
    parser.add_argument("--volume", action="append", default=[])
    options = parser.parse_args()
    base(options.base)
    result: dict[str, Any] = {"tracking": build(TRACKING, "tracking.Dockerfile", options.pip, options.volume)}
    result["tracking"]["seconds_to_answer"] = predict_probabilities(TRACKING, 5000, "--postgres /tmp/postgres")
    print(result, flush=True)
    result["trainer"] = build(TRAINER, "Dockerfile", options.pip, options.volume, "--target", "trainer")
    print(result, flush=True)
    seconds, said = run(TRAINER, "id --user && conclave doctor")
    assert said.startswith("1000\n"), said
    assert "Healthy" in said, said
    result["trainer"]["doctor_seconds"] = round(seconds, 1)
    result["trainer"]["seconds_to_answer_on_postgresql"] = predict_probabilities(TRAINER, 5001, "--postgres /tmp/postgres")
    seconds, said = run(TRAINER, DEMO)
    summary = json.loads(said.splitlines()[-1])
    assert summary["state"] == "done", summary
    result["trainer"] |= {"demo_seconds": round(seconds, 1), "demo_recommends": summary["recommended"]}
    result["notebook"] = build(NOTEBOOK, "Dockerfile", options.pip, options.volume, "--target", "notebook")
    result["notebook"]["jupyterlab"] = run(NOTEBOOK, "jupyter lab --version")[1].strip()
    write_result("images", "python -m benchmarks.images BASE", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
