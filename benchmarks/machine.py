"""Where a figure was measured, and the file in which it is kept."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "ray", "mlflow", "scikit-learn", "onnxruntime")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, Python and the packages that matter."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def write_result(name: str, command: str, result: dict[str, Any]) -> Path:
    """results/NAME.json: the command, the date, the commit, the machine, and what was seen."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    when = {"date": datetime.now(UTC).date().isoformat(), "commit": _commit()}
    content = {"command": command, **when, "machine": describe(), "result": result}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def median_seconds(work: Callable[[], object], times: int) -> float:
    """Of so many, after one that warms up."""
    work()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    process = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return process.stdout.strip()


def _processor() -> str:
    """The model and the vector instructions that decide the speed."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.processor())} ({', '.join(wide)})"
