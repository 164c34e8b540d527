"""docs/metrics.md, the dashboard and the alerts name what there is, and docs/metrics.md all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from zkc.client import metrics as client
from zkc.coordinator import metrics as coordinator
from zkc.coordinator.transfers import STEPS
from zkc.metrics.door import OUTCOMES
from zkc.metrics.families import COMMON, OTHER, PROCESS, REASONS, Metric

TOP: Final = Path(__file__).parents[2]
DASHBOARD: Final = TOP / "config/grafana-dashboard.json"
ALERTS: Final = TOP / "config/prometheus-alerts.yml"
ALL: Final = (*COMMON, *coordinator.METRICS, *client.METRICS, *PROCESS)
BY_NAME: Final = {metric.name: metric for metric in ALL}
VALUES: Final[dict[tuple[str, str], set[str]]] = {
    ("zkc_build_info", "role"): {"coordinator", "client"},
    ("zkc_scrapes_total", "outcome"): set(OUTCOMES),
    ("zkc_coordinator_admissions_total", "outcome"): set(coordinator.DOOR),
    ("zkc_coordinator_registrations_total", "outcome"): set(coordinator.REGISTRATIONS),
    ("zkc_coordinator_clients_online_persons", "state"): set(coordinator.PEOPLE),
    ("zkc_coordinator_handshake_step_seconds", "step"): set(STEPS.values()),
    ("zkc_coordinator_policy_refused_total", "reason"): {*coordinator.POLICY, OTHER},
    ("zkc_coordinator_violations_total", "rule"): {*coordinator.RULES, OTHER},
    ("zkc_coordinator_errors_total", "where"): set(coordinator.ERRORS),
    ("zkc_daemon_links", "state"): {"linked", "unlinked"},
    ("zkc_daemon_incoming_refused_total", "reason"): {*client.REFUSED, OTHER},
    ("zkc_daemon_outbox_jobs", "state"): set(client.JOBS),
    ("zkc_daemon_errors_total", "where"): set(client.ERRORS),
}
"""What a label may say, other than a version, a code and its reason."""

_SELECTOR: Final = re.compile(r"\b((?:zkc|process)_[a-z_]+)(?:\{([^}]*)\})?")
_MATCHER: Final = re.compile(r'\s*([a-z_]+)(=~|!~|!=|=)"([^"]*)"\s*')
_BY: Final = re.compile(r"\bby \(([a-z_, ]+)\)")
_OF_PROMETHEUS: Final = {"instance", "job", "le"}


def values_of(metric: Metric, label: str) -> set[str]:
    if metric.labels == ("code", "reason"):
        return {str(code) for code in REASONS} if label == "code" else set(REASONS.values())
    return VALUES.get((metric.name, label), set())


def metric_of(name: str) -> Metric | None:
    """Whose a name in an expression is; a histogram has three."""
    plain = re.sub(r"_(bucket|sum|count)$", "", name)
    metric = BY_NAME.get(name)
    if metric is None and plain != name and (found := BY_NAME.get(plain)) is not None and found.kind == "histogram":
        return found
    return None if metric is not None and metric.kind == "histogram" else metric


def problems(expression: str) -> list[str]:
    """What does not exist, of the metrics, labels and values that it names."""
    found = []
    by = {label.strip() for each in _BY.findall(expression) for label in each.split(",")}
    for name, inside in _SELECTOR.findall(expression):
        metric = metric_of(name)
        if metric is None:
            found.append(f"no metric {name}")
            continue
        found += [f"{name} by {label}" for label in by - {*metric.labels, *_OF_PROMETHEUS}]
        if "le" in by and metric.kind != "histogram":
            found.append(f"{name} by le")
        for part in inside.split(",") if inside else ():
            match = _MATCHER.fullmatch(part)
            if match is None:
                found.append(f"{name}: {part}")
                continue
            label, _, said = match.groups()
            if label in _OF_PROMETHEUS:
                continue
            known = values_of(metric, label)
            found += [f"{name}: {label} {word}" for word in said.split("|") if word not in known]
    if not _SELECTOR.search(expression):
        found.append("names no metric")
    if expression.count("(") != expression.count(")") or expression.count("{") != expression.count("}"):
        found.append("brackets")
    return found


def alerts() -> Iterator[dict[str, str]]:
    """The rules of the file, which is held to a part of YAML that needs no library: one key a line, no quotes, no
    line that goes on."""
    rule: dict[str, str] = {}
    for line in ALERTS.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"( *)(- )?([a-z]+):(?: ([^ \"'\[{>|&*!%#@`-].*))?", line)
        assert match is not None, f"not of the part of YAML that this reads: {line}"
        margin, item, key, value = len(match[1]) + len(match[2] or ""), match[2], match[3], match[4] or ""
        assert ": " not in value, line
        assert " #" not in value, line
        if item and key == "alert":
            if rule:
                yield rule
            rule = {}
        if margin >= 8:
            rule[key] = value
    yield rule


def panels() -> Iterator[dict[str, Any]]:
    yield from json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("rate(zkc_coordinator_nonsense_total[5m])", "no metric"), ("zkc_coordinator_handshake_seconds", "no metric"),
        ("zkc_coordinator_clients_bucket", "no metric"), ("sum by (name) (zkc_coordinator_clients)", "by name"),
        ('zkc_daemon_links{state="lost"}', "state lost"), ('zkc_daemon_links{state=lost}', "state=lost"),
        ('zkc_daemon_links{who="bob"}', "who bob"), ("sum by (le) (zkc_daemon_links)", "by le"),
        ("time()", "no metric"), ("rate(zkc_coordinator_clients[5m]", "brackets"),
    ],
)
def test_what_is_wrong_with_an_expression_is_found(expression: str, wrong: str) -> None:
    assert wrong in "; ".join(problems(expression))


def test_alerts_name_what_there_is() -> None:
    found = list(alerts())
    assert len(found) > 12
    assert len({each["alert"] for each in found}) == len(found)
    assert {each["alert"]: problems(each["expr"]) for each in found if problems(each["expr"])} == {}
    for each in found:
        assert each["severity"] in {"info", "warning", "critical"}
        assert each["summary"].endswith((".", "?", ")."))
        labels = set(re.findall(r"\$labels\.([a-z]+)", each["summary"] + each.get("description", "")))
        kept = {label.strip() for by in _BY.findall(each["expr"]) for label in by.split(",")}
        assert labels <= (kept or {"instance"}), f"{each['alert']} names labels that its expression drops"


def test_the_dashboard_names_what_there_is() -> None:
    said = [(each["title"], target["expr"]) for each in panels() for target in each.get("targets", [])]
    assert len(said) > 30
    plain = [(title, re.sub(r"\$__rate_interval", "5m", expression)) for title, expression in said]
    assert {title: problems(expression) for title, expression in plain if problems(expression)} == {}
    for each in panels():
        for target in each.get("targets", []):
            shown = set(re.findall(r"\{\{([a-z]+)\}\}", target["legendFormat"]))
            kept = {label.strip() for by in _BY.findall(target["expr"]) for label in by.split(",")}
            summed = kept or "sum(" in target["expr"]
            assert not summed or shown <= kept, f"{each['title']} shows labels that its expression drops"


def test_the_panels_of_the_dashboard_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for each in panels():
        at = each["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, each["title"]
        taken |= cells
    assert len({each["id"] for each in panels()}) == len(list(panels()))


def test_names_follow_the_conventions_of_prometheus() -> None:
    assert len(BY_NAME) == len(ALL)
    for metric in set(ALL) - set(PROCESS):
        assert re.fullmatch(r"zkc(_coordinator|_daemon)?(_[a-z]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.kind != "histogram" or metric.name.endswith("_seconds"), metric.name
        assert metric.help.endswith("."), metric.name
        for label in metric.labels:
            assert label == "version" or values_of(metric, label), f"what may {label} of {metric.name} be?"
    assert not {label for metric in ALL for label in metric.labels} & {"name", "client", "sender", "recipient", "peer"}


def row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


def test_the_reference_has_every_metric_and_no_other() -> None:
    page = (TOP / "docs/metrics.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| `(zkc|process)_", line)]
    assert sorted(rows) == sorted(map(row, ALL))
    for (name, label), known in VALUES.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"- `{name}`, `{label}`: ")]
        assert set(re.findall(r"`([a-z-]+)`", line.partition(": ")[2].partition(".")[0])) == known, line
