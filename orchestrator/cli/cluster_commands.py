"""Commands on a cluster: up, down, attach."""

from __future__ import annotations

import typer

from orchestrator.cli.options import ClusterFile

app = typer.Typer()


@app.command(epilog="Example: conclave up cluster.yaml")
def up(cluster_file: ClusterFile) -> None:
    """Start a cluster's head node with Ray's launcher. Workers start when members wait for them."""
    from orchestrator.cluster.launcher import Cluster

    Cluster.ready(cluster_file).up()


@app.command(epilog="Example: conclave down cluster.yaml")
def down(cluster_file: ClusterFile) -> None:
    """Shut down all machines of a cluster."""
    from orchestrator.cluster.launcher import Cluster

    Cluster.ready(cluster_file).down()


@app.command(epilog="Example: conclave attach cluster.yaml")
def attach(cluster_file: ClusterFile) -> None:
    """Open a shell on a cluster's head."""
    from orchestrator.cluster.launcher import Cluster

    raise typer.Exit(Cluster.ready(cluster_file).attach())
