"""The services of the tests are the real ones, and ask for their credentials."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest


def test_postgres_keeps_rows_and_asks_for_the_password(postgres) -> None:
    import psycopg

    database = postgres.create_database()
    postgres.query(database, "CREATE TABLE t (x int)")
    postgres.query(database, "INSERT INTO t VALUES (1), (2)")
    assert postgres.query(database, "SELECT sum(x) FROM t") == [(3,)]
    assert postgres.query(database, "SHOW server_version")[0][0].split(".")[0].isdigit()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(replace(postgres, password="wrong").uri(database))


def test_object_store_keeps_objects_and_asks_for_the_key(object_store) -> None:
    from botocore.exceptions import ClientError

    bucket, client = object_store.create_bucket(), object_store.client()
    body = bytes(range(256)) * 64 * 1024  # 16 MiB: boto3 sends it in parts
    client.upload_fileobj(io.BytesIO(body), bucket, "folder/large")
    client.put_object(Bucket=bucket, Key="folder/small", Body=b"1", IfNoneMatch="*")
    assert client.get_object(Bucket=bucket, Key="folder/large")["Body"].read() == body
    assert object_store.keys(bucket) == ["folder/large", "folder/small"]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="folder/small", Body=b"2", IfNoneMatch="*")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        replace(object_store, secret_key="wrong").client().list_buckets()
