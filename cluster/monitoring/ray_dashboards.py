"""Write the dashboards of the installed Ray as ConfigMaps for Grafana's sidecar.

`python cluster/monitoring/ray_dashboards.py | kubectl apply --server-side -f -`. They belong to one
version of Ray, so they are made when they are applied and not kept here.
"""

import json
import sys

import yaml
from ray.dashboard.modules.metrics import grafana_dashboard_factory as factory


def config_maps() -> list[dict]:
    """Return one ConfigMap each for Ray's default, Train and Data dashboards."""
    makers = {
        "default": factory.generate_default_grafana_dashboard,
        "train": factory.generate_train_grafana_dashboard,
        "data": factory.generate_data_grafana_dashboard,
    }
    documents = []
    for name, make in makers.items():
        metadata = {
            "name": f"ray-dashboard-{name}",
            "namespace": "sat-ray",
            "labels": {"grafana_dashboard": "1"},
        }
        # Without the indentation, and one by one: a ConfigMap ends at 1 MiB.
        content = json.dumps(json.loads(make()[0]), separators=(",", ":"))
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": metadata,
                "data": {f"ray-{name}.json": content},
            }
        )
    return documents


if __name__ == "__main__":
    yaml.safe_dump_all(config_maps(), sys.stdout)
