from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "scripts" / "benchmarks").glob("*.py") if not path.stem.startswith("_"))


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/benchmark.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)


def test_help_explains_every_benchmark_in_a_line() -> None:
    lines = benchmark("--help").stdout.splitlines()
    explained = [line.split(maxsplit=1) for line in lines[lines.index("benchmarks:") + 1 :]]
    assert [words[0] for words in explained] == NAMES
    assert {"denoiser", "synthesis"} <= set(NAMES)
    assert all(len(words) == 2 and words[1].endswith(".") for words in explained)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_prints_a_table_the_machine_and_json(name: str, tmp_path: Path) -> None:
    result = benchmark(name, "--small", "--threads", "1", "--out", str(tmp_path / "pictures"))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    report = json.loads(lines[-1])
    assert report["benchmark"] == name
    assert report["rows"]
    for row in report["rows"]:
        assert set(row) == {"name", "seconds", "baseline_seconds", "ratio"}
        assert row["seconds"] > 0
        assert row["ratio"] == pytest.approx(row["baseline_seconds"] / row["seconds"])
        assert any(line.startswith(row["name"]) and line.endswith(f"{row['ratio']:.2f}") for line in lines)
    first = report["rows"][0]
    # Over several seeds the benchmark's own figure is the median of their ratios, not the ratio of the medians.
    assert report["ratio"] == report.get(f"median ratio, {first['name']}", first["ratio"])
    assert "1 threads; GPU:" in lines[-2]
    if name == "overhead":
        picture = tmp_path / "pictures" / "benchmark-overhead.png"
        assert f"picture: {picture}" in lines
        assert picture.read_bytes().startswith(b"\x89PNG")
        # Replayed stages count as what the table says they cost, so that the share is all of the service's time.
        assert 0 < report["share"] < 5
        assert report["growth"] > 0
        assert report["seconds_stages"] > 250  # of them 212 of the stages that all trials share


def test_an_unknown_benchmark_is_refused() -> None:
    result = benchmark("speed")
    assert result.returncode == 2
    assert "invalid choice: 'speed'" in result.stderr
