"""`python -m tools.dashboard`: write the Grafana dashboard, or render its present state as an image."""

from pathlib import Path

import click

from tools.dashboard.build import dashboard_json

OUT = Path(__file__).parents[2] / "configs" / "grafana" / "dashboards" / "imagegen.json"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="File for the JSON.", show_default=True)
@click.option(
    "--render", type=click.Path(path_type=Path), help="Render all panels into this PNG instead of writing JSON."
)
@click.option(
    "--prometheus", default="http://127.0.0.1:9090", show_default=True, help="URL of the Prometheus for --render."
)
@click.option(
    "--minutes", type=click.FloatRange(min=0.1), default=60, show_default=True, help="Rendered time range."
)
@click.option("--window", default="1m", show_default=True, help="Value of $__rate_interval.")
@click.option("--gpus", type=click.IntRange(min=0), help="Number of rendered GPU rows.  [default: all]")
def main(out: Path, render: Path | None, prometheus: str, minutes: float, window: str, gpus: int | None) -> None:
    """Write the Grafana dashboard as JSON, or render it from a Prometheus without Grafana."""
    if render is None:
        out.write_text(dashboard_json())
        click.echo(out)
        return
    from tools.dashboard.render import render as render_png  # matplotlib is slow to import

    empty = render_png(render, prometheus, seconds=minutes * 60, window=window, gpus=gpus)
    click.echo(render)
    for title in empty:
        click.echo(f"no data: {title}", err=True)


main()
