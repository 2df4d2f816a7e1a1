from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICE = {"ray", "mlflow", "optuna", "tune"}


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "migvis").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_science_knows_nothing_of_the_service(path: Path) -> None:
    assert not imported(path) & SERVICE


BLOCKED = """
import importlib, pkgutil, sys
for name in ("ray", "mlflow", "optuna"):
    sys.modules[name] = None
import migvis
for module in pkgutil.walk_packages(migvis.__path__, "migvis."):
    importlib.import_module(module.name)
late = {"timm", "matplotlib", "sklearn", "torchvision"} & set(sys.modules)
assert not late, f"imported before they are used: {sorted(late)}"
"""


def test_migvis_imports_without_the_service_and_lightly() -> None:
    result = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("elsewhere", [False, True])
def test_run_py_answers_help_from_any_folder(tmp_path: Path, elsewhere: bool) -> None:
    script = str(ROOT / "tune" / "run.py") if elsewhere else "tune/run.py"
    command = [sys.executable, script, "--help"]
    result = subprocess.run(command, cwd=tmp_path if elsewhere else ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for option in ["config", "data", "trials", "study", "storage", "tracking-uri", "address", "seed", "resume", "dry-run", "set"]:
        assert f"--{option}" in result.stdout


def test_run_py_reports_a_mistake_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "tune/run.py", "--storage", str(tmp_path), "--set", "vae.pc_wieght=1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert result.stderr == "error: --set vae.pc_wieght=1: unknown key vae.pc_wieght; did you mean vae.pc_weight?\n"


def test_siblings_of_run_py_are_no_top_level_names() -> None:
    """`python tune/run.py` would make `import search` find tune/search.py; its first lines prevent that."""
    code = f"import runpy, sys; sys.argv = ['run.py', '--help']; sys.path[0] = {str(ROOT / 'tune')!r}\n"
    code += "try: runpy.run_path('tune/run.py', run_name='__main__')\nexcept SystemExit: pass\n"
    code += "import importlib.util as u; assert u.find_spec('ledger') is None; assert u.find_spec('tune.ledger') is not None"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_the_folder_mlflow_does_not_hide_the_library() -> None:
    assert not (ROOT / "mlflow" / "__init__.py").exists()
    code = "import importlib.util as u; spec = u.find_spec('mlflow'); print(spec.origin)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip().endswith("__init__.py"), result.stdout
    assert str(ROOT / "mlflow") not in result.stdout
