from __future__ import annotations

from pathlib import Path

import pytest

from tune.ray_session import prepare_ray_environment

# Before any test imports ray, which reads some of it once.
prepare_ray_environment()


@pytest.fixture(scope="session")
def local_ray():
    """One local Ray for all tests of the session."""
    import ray

    from tune.search_session import connect

    started = connect(None)
    yield
    if started:
        ray.shutdown()


@pytest.fixture(scope="session")
def blank_mlflow(tmp_path_factory) -> Path:
    """One migrated MLflow database; MLflow takes seconds to make one."""
    from tune.tracking_writer import create_database

    folder = tmp_path_factory.mktemp("blank-mlflow")
    create_database(folder / "mlflow.db", folder / "mlflow-artifacts")
    return folder / "mlflow.db"


@pytest.fixture
def storage(blank_mlflow, tmp_path) -> Path:
    """A storage folder whose MLflow database exists already."""
    (tmp_path / "mlflow.db").write_bytes(blank_mlflow.read_bytes())
    return tmp_path
