"""The benchmarks: a module NAME.py each, whose first line `--help` shows, with `run(options: Options) -> Result`."""
