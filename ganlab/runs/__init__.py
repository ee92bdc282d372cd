"""What lies in a run folder: config, checkpoints, metrics, log, result."""
