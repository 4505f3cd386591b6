"""Check and measure imagegen on this machine's GPU within eight minutes: `python -m benchmarks.gpu`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.about import commit
from benchmarks.gpu import report
from benchmarks.gpu.runner import Runner
from benchmarks.gpu.stages import BY_NAME, MINUTES, STAGES


def _limits(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    limits = {}
    for value in values:
        name, _, seconds = value.partition("=")
        try:
            limits[BY_NAME[name].name] = float(seconds)
        except (KeyError, ValueError):
            raise click.BadParameter(
                f"{value!r}: expected STAGE=SECONDS, with one of {', '.join(BY_NAME)}"
            ) from None
    return limits


@click.command()
@click.option("--small", is_flag=True, help="Use tiny models on the pretended card; needs no GPU.")
@click.option("--stage", "wanted", multiple=True, type=click.Choice(list(BY_NAME)), help="Run this stage only.")
@click.option(
    "--limit", "limits", multiple=True, callback=_limits, metavar="STAGE=SECONDS", help="Change a limit."
)
@click.option("--minutes", default=MINUTES, show_default=True, help="Limit for all stages together.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/benchmarks/gpu"), show_default=True)
@click.option("--into", type=click.Path(path_type=Path, exists=True), help="Page whose tables are replaced.")
def main(
    small: bool, wanted: tuple[str, ...], limits: dict[str, float], minutes: float, out: Path, into: Path | None
) -> None:
    """Check and measure imagegen on this machine's GPU. Exit status 1 if a stage does not pass."""
    stages = [
        replace(stage, limit=limits.get(stage.name, stage.limit))
        for stage in STAGES
        if not wanted or stage.name in wanted
    ]
    out = out.resolve()
    runner = Runner(out / "stages", small=small, seconds=60 * minutes, say=click.echo)
    device = runner.describe()
    if "error" in device:
        raise click.ClickException(device["error"])
    about: dict[str, Any] = {**device, "commit": commit(), "small": small}

    def save(done: list[dict[str, Any]]) -> None:
        report.write({"about": about, "stages": done}, out)

    results = runner.run_all(stages, save)
    found = {"about": about, "stages": results}
    click.echo(report.markdown(found))
    for file in report.write(found, out):
        click.echo(f"wrote {file}")
    if into is not None:
        report.insert(found, into)
    if any(stage["outcome"] != "passed" for stage in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
