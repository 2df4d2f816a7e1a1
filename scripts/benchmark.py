"""Measures how much faster something is than a named baseline, side by side in one run.

Prints a table and the machine, and as its last line JSON: {"benchmark", "ratio", "rows": [{"name", "seconds",
"baseline_seconds", "ratio"}, …]} and any further figures of the benchmark; ratio = baseline_seconds / seconds.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "benchmarks"


def benchmarks() -> dict[str, str]:
    """The benchmarks by name, each with the first line of its module's docstring."""
    modules = sorted(path for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    lines = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in modules}
    return {name: text.partition("\n")[0] for name, text in lines.items()}


def machine() -> str:
    """Processor, cores, torch and its threads, and the GPU if there is one."""
    import torch

    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {cores} cores; torch {torch.__version__}, {torch.get_num_threads()} threads; GPU: {gpu}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    width = max(len("name"), *(len(row["name"]) for row in rows))
    head = f"{'name':{width}}  {'seconds':>10}  {'baseline_seconds':>16}  {'ratio':>7}"
    lines = [
        f"{row['name']:{width}}  {row['seconds']:10.4g}  {row['baseline_seconds']:16.4g}  {row['ratio']:7.2f}" for row in rows
    ]
    return "\n".join([head, *lines])


def main(argv: list[str] | None = None) -> int:
    """Runs one benchmark; returns the exit code."""
    known = benchmarks()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["benchmarks:", *(f"  {name:10} {line}" for name, line in known.items())]),
    )
    parser.add_argument("name", choices=list(known), metavar="NAME", help=", ".join(known))
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice, one per core)")
    parser.add_argument("--small", action="store_true", help="the tiniest variant: shows that it runs, and nothing about speed")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="for benchmark-NAME.png of those that draw (default: here)"
    )
    arguments = parser.parse_args(argv)
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads: at least 1, got {arguments.threads}")

    import torch
    from benchmarks._frame import Options

    from migvis.errors import InputError
    from tune.ray_session import prepare_ray_environment

    prepare_ray_environment()  # before ray is imported, which reads some of it once: started by `uv run` it would wait for ever
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = Options(arguments.small, torch.get_num_threads(), arguments.out)
    try:
        result = importlib.import_module(f"benchmarks.{arguments.name}").run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [
        {"name": row.name, "seconds": row.seconds, "baseline_seconds": row.baseline_seconds, "ratio": row.ratio}
        for row in result.rows
    ]
    print(table(rows))
    for name, value in result.figures.items():
        print(f"{name}: {value:.4g}")
    for path in result.pictures:
        print(f"picture: {path}")
    print(machine())
    ratio = rows[0]["ratio"] if result.ratio is None else result.ratio
    print(json.dumps({"benchmark": arguments.name, "ratio": ratio, "rows": rows, **result.figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
