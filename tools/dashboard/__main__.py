"""`python -m tools.dashboard`: write the dashboard, or draw what it would show now."""

from pathlib import Path

import click

from tools.dashboard.build import dashboard_json

OUT = Path(__file__).parents[2] / "configs" / "grafana" / "dashboards" / "imagegen.json"


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=OUT, help="Where the JSON goes.", show_default=True
)
@click.option(
    "--render", type=click.Path(path_type=Path), help="Draw every panel into this PNG, and write no JSON."
)
@click.option("--prometheus", default="http://127.0.0.1:9090", show_default=True, help="URL that --render asks.")
@click.option(
    "--minutes", type=click.FloatRange(min=0.1), default=60, show_default=True, help="Time that is drawn."
)
@click.option("--window", default="1m", show_default=True, help="What stands for $__rate_interval.")
@click.option("--gpus", type=click.IntRange(min=0), help="Draw this many GPU rows only.  [default: all]")
def main(out: Path, render: Path | None, prometheus: str, minutes: float, window: str, gpus: int | None) -> None:
    """Write the Grafana dashboard as JSON, or draw it from a Prometheus without Grafana."""
    if render is None:
        out.write_text(dashboard_json())
        click.echo(out)
        return
    from tools.dashboard.render import draw  # matplotlib is slow to import

    empty = draw(render, prometheus, seconds=minutes * 60, window=window, gpus=gpus)
    click.echo(render)
    for title in empty:
        click.echo(f"no data: {title}", err=True)


main()
