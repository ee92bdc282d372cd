"""Files, locks, downloads, signals, hardware: what the operating system gives."""
