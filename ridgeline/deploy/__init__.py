"""A deployment as Ray Serve, KServe, SageMaker, compose or systemd."""
