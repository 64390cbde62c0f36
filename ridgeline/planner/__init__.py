"""Search over deployment, workload and objective."""
