"""Packing an archive of images once, against decoding them alone on all cores, and its second use: results/packing.json.

python -m benchmarks.packing ARCHIVE     # in the layout train/CLASS/FILE, test/CLASS/FILE; the real CIFAR-10's JPEGs, for one
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.machine import describe, median_seconds, write_result
from workers.config.specs import DataSpec
from workers.data import packing as data
from workers.data.archives import list_files, read
from workers.data.images import decode, is_image

ROUNDS, SIDE = 3, 32


def main() -> None:
    archive = Path(sys.argv[1])
    spec = DataSpec(dataset="cifar10", root=archive, image_size=SIDE)
    with ExitStack() as open_files:
        contents = [read(content) for name, content in list_files(archive, open_files) if is_image(name)]
    times: dict[str, list[float]] = {"decoding": [], "packing": []}
    with tempfile.TemporaryDirectory() as work:
        for turn in range(ROUNDS):
            began = time.perf_counter()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda content: decode(content, SIDE), contents))
            times["decoding"].append(time.perf_counter() - began)
            home = Path(work, str(turn))
            home.mkdir()
            began = time.perf_counter()
            data.pack_data(spec, home)
            times["packing"].append(time.perf_counter() - began)
        again = median_seconds(lambda: data.pack_data(spec, home), 5)
    seconds = {name: median(values) for name, values in times.items()}
    ratio = seconds["packing"] / seconds["decoding"]
    result = {"images": len(contents), "seconds": seconds, "over_decoding": ratio, "second_use_seconds": again}
    write_result("packing", "python -m benchmarks.packing ARCHIVE", {**result, "goals": {"second_use_seconds": 0.2}})
    print(json.dumps(result, indent=1))
    print(json.dumps(describe()))


if __name__ == "__main__":
    main()
