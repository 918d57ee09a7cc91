"""Judges metrics for tests/deploy/scraped.

scraped.py texts NAME...
    checks NAME.text and NAME.open, a service's answer in both formats
scraped.py expressions PROMETHEUS ALERTS DASHBOARD
    evaluates the expressions of these files on a Prometheus that scrapes the services
"""

import json
import re
import sys
import time
import urllib.parse
import urllib.request

# Series of one instance. Labels are small fixed sets, which do not grow with entries, viewers or
# edges.
MOST_SERIES = 1200
WAIT_S = 60


def texts(names):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
    from prometheus_client.parser import text_string_to_metric_families as text

    for name in names:
        families = {}
        for kind, parser in (("open", open_metrics), ("text", text)):
            with open(f"{name}.{kind}") as file:
                families[kind] = {family.name: family for family in parser(file.read())}
        unknown = [
            family.name
            for family in families["text"].values()
            if family.type == "unknown" or not family.documentation
        ]
        assert not unknown, f"without a type or a description: {unknown}"
        assert set(families["open"]) == set(
            families["text"]
        ), "the formats tell of different families: " + str(
            set(families["open"]) ^ set(families["text"])
        )
        for family in families["open"].values():
            assert family.type == families["text"][family.name].type, family.name
        series = sum(len(family.samples) for family in families["open"].values())
        assert 0 < series < MOST_SERIES, f"{series} series"
        print(f"{name.split('/')[-1]}: {len(families['open'])} families, {series} series")


class Prometheus:
    def __init__(self, url):
        self.url = url

    def ask(self, path, **parameters):
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{path}?{query}", timeout=10
            ) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression):
        return self.ask("query", query=expression)["result"]


def rules_of(path):
    """Expressions of the rules, each with the labels that its annotations name."""
    # Python has no YAML parser. promtool has checked the file, and all rules have the same form.
    for block in re.split(r"^ *- (?=alert:|record:|name:)", open(path).read(), flags=re.M)[1:]:
        kind, name = re.match(r"(\w+): (\S+)", block).groups()
        if kind != "name":
            lines = re.search(
                r"^ +expr:(?: \||) *(.*?)(?=^ {8}[a-z]+:|\Z)", block, flags=re.M | re.S
            )[1]
            yield name, " ".join(lines.split()), set(re.findall(r"\$labels\.(\w+)", block))


def panels_of(path):
    for panel in json.load(open(path))["panels"]:
        for target in panel.get("targets", []):
            expression = re.sub(r"\$[a-z]+", ".*", target["expr"].replace("$__rate_interval", "1m"))
            yield panel["title"], expression, set(
                re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))
            )


def problems_of(prometheus, expression, shown):
    """Metrics, labels and label values that the expression names and no service exports."""
    plain = re.sub(r'"[^"]*"', '""', expression)
    grouped = {
        label.strip()
        for group in re.findall(r"\b(?:by|on|ignoring)\s*\(([^)]*)\)", plain)
        for label in group.split(",")
    }
    for metric in set(re.findall(r"\b(?:cache_[a-z0-9_]+|cache:[a-z0-9_:]+|up)\b", plain)):
        if not prometheus.query(metric):
            yield f"no series {metric}"
            continue
        matchers = [found for found in re.findall(metric + r"{([^}]*)}", expression)]
        pairs = [
            pair for found in matchers for pair in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', found)
        ]
        labels = {label for label, _, _ in pairs} | (set() if ":" in metric else grouped | shown)
        if not metric.endswith("_bucket"):
            labels.discard("le")
        # Labels of targets, where one Prometheus has several clusters.
        labels -= {"cluster", "namespace"}
        for label in labels:
            if not prometheus.query(f'{metric}{{{label}!=""}}'):
                yield f"{metric} has no label {label}"
        # An excluded value must exist as well, or the expression excludes nothing.
        for label, operator, value in pairs:
            for one in value.split("|"):
                if not prometheus.query(
                    f'{metric}{{{label}{"=~" if "~" in operator else "="}"{one}"}}'
                ):
                    yield f"{metric} has no {label} {one}"


def expressions(url, alerts, dashboard):
    prometheus = Prometheus(url)
    up = []
    until = time.monotonic() + WAIT_S
    # Rates need two scrapes with traffic between them, and the rules' rates one more evaluation.
    # Before any traffic, the quantile exists as NaN, and the share does not exist.
    recorded = ("cache:first_byte_seconds:p99_5m", "cache:hit_share:ratio5m")
    while len(up) < 4 or not all(prometheus.query(name) for name in recorded):
        assert (
            time.monotonic() < until
        ), f"not scraped: {prometheus.ask('targets')['activeTargets']}"
        time.sleep(0.5)
        up = prometheus.query("up == 1")
    trouble = []
    for group in prometheus.ask("rules")["groups"]:
        trouble += [
            f"{rule['name']}: {rule['lastError']}"
            for rule in group["rules"]
            if rule.get("lastError")
        ]
    asked = [*rules_of(alerts), *panels_of(dashboard)]
    empty = 0
    for name, expression, shown in asked:
        answer = prometheus.query(expression)
        empty += not answer
        trouble += [f"{name}: {problem}" for problem in problems_of(prometheus, expression, shown)]
    assert not trouble, "\n".join(trouble)
    firing = [
        alert["labels"]["alertname"]
        for alert in prometheus.ask("alerts")["alerts"]
        if alert["state"] == "firing"
    ]
    assert not firing, f"alerts of a cluster that is well: {firing}"
    print(
        f"{len(up)} instances, {len(asked)} expressions; {len(asked) - empty} had an answer, the "
        f"rest are alerts that are silent"
    )


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    texts(arguments) if verb == "texts" else expressions(*arguments)
