"""What `ray up` accepts in silence and should not. Same shape as rules.py, on one file."""

import json
import re
from collections.abc import Iterator

from cluster.checks.documents import Document, announced, announcement

# Ray hands unknown provider keys on in silence; these are the ones that its AWS
# provider reads and this project uses.
PROVIDER_KEYS = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "use_internal_ips",
    "security_group",
}


def launcher(config: Document) -> Iterator[str]:
    """Require known provider keys, a head that scales and takes no work, a token,
    and groups with an end.
    """
    if unknown := set(config["provider"]) - PROVIDER_KEYS:
        yield f"provider: {sorted(unknown)} is not among {sorted(PROVIDER_KEYS)}"
    for role in ("head", "worker"):
        starts = [line for line in config[f"{role}_start_ray_commands"] if "ray start" in line]
        if len(starts) != 1:
            yield f"{role}: {len(starts)} start commands"
        for line in starts:
            if "RAY_AUTH_MODE=token" not in line:
                yield f"{role}: started without RAY_AUTH_MODE=token"
            if role == "head":
                yield from _head(line)
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line][:1] or [
        ""
    ]
    said = announced("".join(re.findall(r"SAT_RAY_NODE_GROUPS='([^']*)'", head)))
    for name, group in config["available_node_types"].items():
        has = group["resources"]
        wanted = announcement(name, group.get("max_workers", 0), has["CPU"], has.get("GPU", 0))
        if name != config["head_node_type"] and wanted not in said:
            yield f"head: SAT_RAY_NODE_GROUPS lacks {json.dumps(wanted)}"
    if config["provider"].get("use_internal_ips") is not True:
        yield "provider: nodes get public addresses; set use_internal_ips to true"
    installs = [line for line in config["setup_commands"] if "pip install" in line]
    if not installs or any("--require-hashes" not in line for line in installs):
        yield "setup_commands: packages are installed without --require-hashes"
    if "~/.ray/auth_token" not in config.get("file_mounts", {}):
        yield "the token's file does not travel to the nodes"
    groups = config["available_node_types"]
    for name, group in groups.items():
        if group.get("min_workers", 0) != 0:
            yield f"{name}: {group['min_workers']} machines are never given back"
        if not group["node_config"].get("SecurityGroupIds"):
            yield f"{name}: without SecurityGroupIds Ray opens port 22 to everybody"
        if "IamInstanceProfile" not in group["node_config"]:
            yield f"{name}: without an instance profile it needs keys"
        if group["node_config"].get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name}: any process may read the machine's identity with a plain request"
    if sum(group.get("max_workers", 0) for group in groups.values()) > config["max_workers"]:
        yield f"max_workers {config['max_workers']} is below the sum of the groups"


def _head(line: str) -> Iterator[str]:
    needed = {
        "--autoscaling-config=~/ray_bootstrap_config.yaml": "no node would ever be bought",
        "--num-cpus=0": "work would land beside the drivers",
        "--dashboard-host=127.0.0.1": "the dashboard would listen to the world",
    }
    for option, otherwise in needed.items():
        if option not in line.split():
            yield f"head: without {option} {otherwise}"
