"""The Grafana dashboard of a fleet, as code: `python -m tools.dashboard` writes `configs/grafana/dashboards/`."""
