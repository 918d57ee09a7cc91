"""Reads a dashboard into Grafana's own types and writes it again.

A field that is lost on the way is unknown to Grafana.

grafana.py DASHBOARD
"""

import json
import re
import sys

from grafana_foundation_sdk.cog import encoder, plugins
from grafana_foundation_sdk.models import dashboard

# The types do not cover the annotations of the Prometheus data source.
OTHERS = {"$.annotations.list[].step", "$.annotations.list[].titleFormat"}

plugins.register_default_plugins()
given = json.load(open(sys.argv[1]))
read = dashboard.Dashboard.from_json(given)
written = json.loads(encoder.JSONEncoder(sort_keys=True, indent=2).encode(read))
lost, fields = set(), 0


def compare(ours, theirs, path):
    global fields
    if isinstance(ours, dict):
        for key, value in ours.items():
            here = f"{path}.{key}"
            fields += 1
            if not isinstance(theirs, dict) or key not in theirs:
                lost.add(re.sub(r"\[\d+\]", "[]", here))
            else:
                compare(value, theirs[key], here)
    elif isinstance(ours, list):
        if not isinstance(theirs, list) or len(ours) != len(theirs):
            lost.add(path)
        else:
            for index, (one, other) in enumerate(zip(ours, theirs)):
                compare(one, other, f"{path}[{index}]")
    elif ours != theirs:
        lost.add(f"{path}: {ours!r} became {theirs!r}")


compare(given, written, "$")
print("\n".join(sorted(lost - OTHERS)) or f"{fields} fields, {len(given['panels'])} panels")
sys.exit(bool(lost - OTHERS))
