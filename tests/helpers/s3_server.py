"""A real S3 server for tests: OpenStack Swift with its S3 API, all four of its servers in one
process, on loopback, without root.

python tests/helpers/s3_server.py FOLDER PORT [ADDRESS] prints a line once it answers and serves
until it is killed. FOLDER needs a filesystem with user extended attributes. Requests to ports PORT
to PORT + 3; ADDRESS: where port PORT itself listens instead of loopback.
"""

import configparser
import getpass
import os
import sys
from pathlib import Path
from typing import Any

ACCESS_KEY, SECRET_KEY, REGION = "sat:ray", "testsecretsecret", "us-east-1"
STRANGER = "sat:stranger"  # a second access key with the same secret, which may do nothing
ROLES = ("proxy", "object", "container", "account")
# Swift waits half a second for a connection, and lists an object later where that takes a second.
PATIENCE = {"conn_timeout": "600", "node_timeout": "600"}
# A client that is stopped in the middle of a write holds the object server, which serves one
# request at a time, for this long; the others wait for 300 s.
CLIENT_SECONDS = "20"
OF_ROLE = {
    "proxy": {
        "account_autocreate": "true",
        "allow_account_management": "true",
        "recoverable_node_timeout": "600",
        "client_timeout": CLIENT_SECONDS,
    },
    "object": {"container_update_timeout": "600", "client_timeout": "600"},
}
FILTERS = {
    "catch_errors": {},
    "gatekeeper": {},
    "cache": {"egg": "memcache", "memcache_servers": "127.0.0.1:1", "error_suppression_limit": "0"},
    "listing_formats": {},
    "bulk": {},
    "s3api": {"s3_acl": "false", "location": REGION, "force_swift_request_proxy_log": "false"},
    "tempauth": {
        f"user_{ACCESS_KEY.replace(':', '_')}": f"{SECRET_KEY} .admin",
        f"user_{STRANGER.replace(':', '_')}": SECRET_KEY,
    },
    "copy": {},
    "slo": {},
    "dlo": {},
}


def environment(port: int) -> dict[str, str]:
    """Return the variables that point S3 clients at the server."""
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    return keys | {
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }


def client(address: str) -> Any:
    """Return a boto3 client for the server at an address."""
    import boto3

    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
    return boto3.client("s3", endpoint_url=address, region_name=REGION, **keys)


def write_settings(folder: Path, port: int) -> None:
    """Write swift.conf, one file of settings and one ring per server."""
    from swift.common.ring import RingBuilder

    for name in ("etc", "node/disk", "cache"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write(
        folder / "etc" / "swift.conf",
        {
            "swift-hash": {"swift_hash_path_prefix": "test", "swift_hash_path_suffix": "test"},
            "storage-policy:0": {"name": "default", "default": "yes"},
        },
    )
    for offset, role in enumerate(ROLES):
        settings = {
            "bind_ip": "127.0.0.1",
            "bind_port": str(port + offset),
            "user": getpass.getuser(),
            "swift_dir": str(folder / "etc"),
        }
        settings |= {
            "devices": str(folder / "node"),
            "mount_check": "false",
            "disable_fallocate": "true",
            "log_level": "ERROR",
        }
        settings |= {"recon_cache_path": str(folder / "cache")}
        filters = FILTERS if role == "proxy" else {}
        app = {"use": f"egg:swift#{role}"} | PATIENCE | OF_ROLE.get(role, {})
        pipeline = " ".join([*filters, f"{role}-server"])
        sections = {
            "DEFAULT": settings,
            "pipeline:main": {"pipeline": pipeline},
            f"app:{role}-server": app,
        }
        for name, options in filters.items():
            sections[f"filter:{name}"] = {"use": f"egg:swift#{options.get('egg', name)}"} | {
                k: v for k, v in options.items() if k != "egg"
            }
        _write(folder / "etc" / f"{role}-server.conf", sections)
        if role != "proxy":
            ring = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
            ring.add_dev(
                {
                    "region": 1,
                    "zone": 1,
                    "ip": "127.0.0.1",
                    "port": port + offset,
                    "device": "disk",
                    "weight": 1.0,
                }
            )
            ring.rebalance()
            ring.get_ring().save(str(folder / "etc" / f"{role}.ring.gz"))


def _write(path: Path, sections: dict[str, dict[str, str]]) -> None:
    settings = configparser.RawConfigParser(default_section="")
    settings.read_dict(sections)
    with path.open("w") as stream:
        settings.write(stream)


def serve(folder: Path, port: int, *, address: str = "127.0.0.1") -> None:
    """Serve until killed."""
    import eventlet

    eventlet.monkey_patch()
    import eventlet.wsgi
    from swift.common import constraints, storage_policy, utils, wsgi

    utils.SWIFT_CONF_FILE = str(folder / "etc" / "swift.conf")  # instead of /etc/swift/swift.conf
    utils.validate_hash_conf()
    constraints.reload_constraints()
    storage_policy.reload_storage_policies()
    servers = []
    for offset, role in enumerate(ROLES):
        application = wsgi.loadapp(
            str(folder / "etc" / f"{role}-server.conf"), global_conf={"log_name": role}
        )
        listening = eventlet.listen((address if role == "proxy" else "127.0.0.1", port + offset))
        # one request at a time for the objects: of two conditional writes at once Swift alone lets
        # both win, which S3 does not
        pool = eventlet.GreenPool(1 if role == "object" else 100)
        servers.append(
            eventlet.spawn(
                eventlet.wsgi.server, listening, application, log_output=False, custom_pool=pool
            )
        )
    print("ready", flush=True)
    for server in servers:
        server.wait()


if __name__ == "__main__":
    place, first_port = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    os.environ.pop("SWIFT_CONF", None)
    write_settings(place, first_port)
    serve(place, first_port, **({"address": sys.argv[3]} if len(sys.argv) > 3 else {}))
