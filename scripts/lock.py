"""Is requirements.lock current? Every requirement of ours, and of theirs, is pinned and fits its pin.

`--write` pins what is installed. It needs no network, so it can run wherever the environment is.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
OURS = "conclave-ensembles"


def closure() -> dict[str, str]:
    """Every distribution that ours needs, development tools included, with its installed version."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(OURS, "dev")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        package = distribution(name)
        if name != OURS:
            versions[canonicalize_name(name)] = package.version
        for line in package.requires or []:
            needed = Requirement(line)
            if needed.marker and not needed.marker.evaluate({"extra": extra}):
                continue
            if not needed.specifier.contains(distribution(needed.name).version, prereleases=True):
                raise SystemExit(f"{name} needs {needed}, installed is {distribution(needed.name).version}")
            waiting += [(canonicalize_name(needed.name), e) for e in ("", *sorted(needed.extras))]
    return versions


def main() -> None:
    try:
        installed = closure()
    except PackageNotFoundError as error:
        raise SystemExit(f"{error} is needed but not installed: run make install") from None
    lines = [f"{name}=={version.split('+')[0]}" for name, version in sorted(installed.items())]
    if "--write" in sys.argv:
        LOCK.write_text("# Written by `make lock`; installed by `make install`.\n" + "\n".join(lines) + "\n")
        return
    pinned = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    if pinned != lines:
        raise SystemExit(f"requirements.lock is not current; differing: {sorted(set(pinned) ^ set(lines))}")
    print(f"requirements.lock is current: {len(lines)} packages")


if __name__ == "__main__":
    main()
