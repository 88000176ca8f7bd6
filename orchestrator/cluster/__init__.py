"""Ray and its machines: connection, cluster files, jobs on a cluster."""
