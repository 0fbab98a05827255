"""A real S3 server (SeaweedFS) on free loopback ports, for the tests that need one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from statestore.testing.redis_server import die_with_parent, free_port

PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
IDENTITY = {
    "name": "test",
    "credentials": [{"accessKey": "test", "secretKey": "canary-secret"}],
    "actions": ["Admin", "Read", "Write", "List"],
}


@contextlib.contextmanager
def running():
    """Environment variables with which S3 clients find the server, which lives as long as the `with` block."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "s3.json").write_text(json.dumps({"identities": [IDENTITY]}))
        process, variables = _start(folder)
        try:
            yield variables
        finally:
            _end(process)


def _start(folder):
    """Start it; a port that somebody else took in between is a reason to try others."""
    problems = []
    for attempt in range(3):
        ports = {name: free_port() for port in PORTS for name in (port, f"{port}.grpc")}
        data = Path(folder, f"data-{attempt}")
        data.mkdir()
        command = [
            Path(sys.executable).with_name("weed"),
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
        ]
        command += ["-filer", "-s3", f"-s3.config={folder}/s3.json", "-master.telemetry=false", "-volume.max=30"]
        command += ["-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += [f"-{name}={port}" for name, port in ports.items()]
        with Path(folder, "server.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)
        variables = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "canary-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
        }
        if _answers(process, variables):
            return process, variables
        _end(process)
        problems.append(Path(folder, "server.log").read_text()[-1000:])
    raise RuntimeError(f"the S3 server did not start: {problems}")


def _answers(process, variables):
    """Whether it takes its first object in time: it listens before it can store."""
    import s3fs

    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and process.poll() is None:
        try:
            files = s3fs.S3FileSystem(
                key=variables["AWS_ACCESS_KEY_ID"],
                secret=variables["AWS_SECRET_ACCESS_KEY"],
                endpoint_url=variables["AWS_ENDPOINT_URL"],
                skip_instance_cache=True,
            )
            files.mkdirs("bucket", exist_ok=True)
            files.pipe_file("bucket/first", b"object")
        except Exception:  # connection refused, no volume yet: the driver has many ways to say so
            time.sleep(0.2)
        else:
            return True
    return False


def _end(process):
    process.kill()
    process.wait()
