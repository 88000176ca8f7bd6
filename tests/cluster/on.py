"""`sweep --on` in a process that reads the token afresh, with the stand-in for the launcher: TEAM CLUSTER HERE THERE."""

import sys
from functools import partial
from pathlib import Path

from orchestrator.cluster import ray_jobs as remote
from orchestrator.cluster.launcher import Cluster
from orchestrator.home import Home
from workers.errors import ConclaveError

FAKE = (sys.executable, str(Path(__file__).with_name("fake_ray.py")))


def main() -> None:
    team, cluster, here, there = map(Path, sys.argv[1:])
    read = Cluster.read(cluster)
    asked = remote.RemoteSweep(
        Cluster(read.path, read.config, FAKE), Home(here), partial(print, flush=True), head_home=str(there)
    )
    try:
        sys.exit(remote.sweep_on_cluster(team, asked))
    except KeyboardInterrupt:
        sys.exit(130)
    except ConclaveError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
