"""Check that the repository stays small: `make check` runs this.

A clone has to be quick on a slow line, so the tracked files have a limit each and together. Large results belong into
a release, and data sets belong to whoever provides them.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE_BYTES = 12_000_000
FILE_BYTES = 1_000_000


def tracked_bytes() -> dict[str, int]:
    """Return the size in bytes of each file that git tracks."""
    words = ["git", "ls-files", "-z"]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name: (ROOT / name).lstat().st_size for name in names if name and (ROOT / name).is_file()}


def problems(sizes: dict[str, int]) -> list[str]:
    """Return one sentence for each limit that these sizes exceed."""
    total = sum(sizes.values())
    sentences = [
        f"{name} has {size:,} bytes; a tracked file may have {FILE_BYTES:,}." for name, size in sizes.items() if size > FILE_BYTES
    ]
    if total > TREE_BYTES:
        sentences.append(f"The tracked files have {total:,} bytes together; they may have {TREE_BYTES:,}.")
    return sentences


def main() -> None:
    if not (ROOT / ".git").exists():
        print("This is not a git checkout, so its size is not checked.")
        return
    sizes = tracked_bytes()
    for sentence in problems(sizes):
        print(sentence)
    if problems(sizes):
        sys.exit(1)
    print(f"The tracked tree has {sum(sizes.values()):,} bytes in {len(sizes)} files.")


if __name__ == "__main__":
    main()
