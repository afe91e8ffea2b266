"""Writes skewtrap.json beside it: `python3 make_dashboard.py`. Edit this, not the JSON."""
import json
import pathlib

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
panels = []


def panel(kind, title, queries, x, y, w, h, about="", unit="short", **options):
    targets = [
        {"refId": chr(65 + n), "datasource": SOURCE, "expr": expr, "legendFormat": legend, "instant": kind in ("stat", "table")}
        for n, (expr, legend) in enumerate(queries)
    ]
    panels.append({
        "id": len(panels) + 1, "type": kind, "title": title, "description": about, "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": w, "h": h}, "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, **options.pop("defaults", {})}, "overrides": []},
        "options": options,
    })


RED_ABOVE_ZERO = {"thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}, {"color": "red", "value": 1}]}}
PICK = '{instance=~"$instance"}'
IN = 'instance=~"$instance"'

panel("stat", "Incidents open", [(f"sum(skewtrap_incidents_open{PICK})", "")], 0, 0, 4, 4, "Rules that fire now.", defaults=RED_ABOVE_ZERO)
panel("stat", "Windows open", [(f"sum(skewtrap_windows_open{PICK})", "")], 4, 0, 4, 4, "Captures under way.")
panel("stat", "Windows left", [(f'min(skewtrap_captures_left{{{IN}, limit="all rules"}})', "")], 8, 0, 4, 4, "What today's limit still allows.")
panel("stat", "Sources down", [(f"count(skewtrap_source_up{PICK} == 0) or vector(0)", "")], 12, 0, 4, 4, "", defaults=RED_ABOVE_ZERO)
panel("stat", "Receivers failing", [(f"sum(skewtrap_receiver_failing{PICK}) or vector(0)", "")], 16, 0, 4, 4, "", defaults=RED_ABOVE_ZERO)
panel("stat", "Agents", [(f"count(skewtrap_start_time_seconds{PICK})", "")], 20, 0, 4, 4)
panel("timeseries", "How uneven: each rule's statistic and its bound",
      [(f"skewtrap_rule_value{PICK}", "{{rule}} {{target}} {{group}}"), (f"skewtrap_rule_bound{PICK}", "bound of {{rule}}")], 0, 4, 16, 9,
      "A rule fires when its statistic stays past its bound, and past what chance explains.")
panel("timeseries", "Groups by state", [(f"sum by (state) (skewtrap_rule_groups{PICK})", "{{state}}")], 16, 4, 8, 9,
      "unknown and inert mean: the rule cannot tell. `skewtrap why` says what is missing.")
panel("timeseries", "Captures a day", [(f"sum by (outcome) (increase(skewtrap_captures_total{PICK}[1d]))", "{{outcome}}"),
                                      (f"sum by (reason) (increase(skewtrap_capture_refusals_total{PICK}[1d]))", "refused: {{reason}}")], 0, 13, 8, 8)
panel("timeseries", "What captures cost the servers a day", [(f"sum by (target) (increase(skewtrap_capture_stall_seconds_total{PICK}[1d]))", "{{target}}")],
      8, 13, 8, 8, "Seconds of serving.", unit="s")
panel("timeseries", "Bundles", [(f"sum(skewtrap_bundles_bytes{PICK})", "taken"), (f"sum(skewtrap_bundles_limit_bytes{PICK})", "limit")], 16, 13, 8, 8, unit="bytes")
panel("timeseries", "Samples per second", [(f"sum by (target, source) (rate(skewtrap_source_samples_total{PICK}[5m]))", "{{target}} {{source}}")], 0, 21, 8, 8)
panel("timeseries", "Lag of the sources", [(f"skewtrap_source_lag_seconds{PICK}", "{{target}} {{source}}")], 8, 21, 8, 8, unit="s")
panel("timeseries", "Messages that wait", [(f"sum by (receiver) (skewtrap_receiver_pending{PICK})", "{{receiver}}")], 16, 21, 8, 8)
panel("timeseries", "The agent's memory", [(f'process_resident_memory_bytes{{{IN}, job=~".*skewtrap.*"}}', "{{instance}}")], 0, 29, 12, 7, unit="bytes")
panel("timeseries", "The agent's CPU", [(f'rate(process_cpu_seconds_total{{{IN}, job=~".*skewtrap.*"}}[5m])', "{{instance}}")], 12, 29, 12, 7, "Share of a core.", unit="percentunit")

dashboard = {
    "uid": "skewtrap", "title": "skewtrap", "tags": ["llm", "skewtrap"], "schemaVersion": 39, "version": 1, "editable": True,
    "time": {"from": "now-6h", "to": "now"}, "refresh": "30s", "panels": panels,
    "templating": {"list": [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {"name": "instance", "type": "query", "datasource": SOURCE, "query": "label_values(skewtrap_start_time_seconds, instance)",
         "label": "Agent", "includeAll": True, "multi": True, "allValue": ".*", "refresh": 2, "current": {"text": "All", "value": "$__all"}},
    ]},
}
pathlib.Path(__file__).with_name("skewtrap.json").write_text(json.dumps(dashboard, indent=1) + "\n")
