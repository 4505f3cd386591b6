"""`make demo`: generate a dozen images with a broker and two workers on this machine."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from imagegen_cli.tables import stats_table
from imagegen_client import Client, GenerationResult
from tools.fleet import Fleet, FleetError
from tools.sheet import contact_sheet

PROMPTS = (
    "a red circle on a blue background",
    "a yellow star on a purple background",
    "a green square on a white background",
    "a white ring on a black background",
    "a blue triangle on a yellow background",
    "an orange cross on a blue background",
    "a purple circle on a green background",
    "a black star on an orange background",
    "a yellow ring on a red background",
    "a white triangle on a green background",
    "a blue square on an orange background",
    "a red cross on a white background",
)
SEED = 20
OUT = Path("out/demo")


def main() -> int:
    """Run the demo and return the exit status."""
    console = Console()
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        OUT.mkdir(parents=True, exist_ok=True)
        with Fleet(log_folder=OUT / "logs") as fleet:
            run(fleet, console)
            # The cleanup must not be interrupted.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except FleetError as error:
        console.print(f"[red]{error}[/red]; see {OUT / 'logs'}")
        return 1
    return 0


def run(fleet: Fleet, console: Console) -> None:
    """Start the fleet, generate the images, and print a summary."""
    with console.status("Starting a broker and two workers (each loads the model) ..."):
        fleet.start_broker()
        for index in range(2):
            fleet.start_worker(f"gpu{index}", "--gpu", str(index), "--device", "cpu", "--torch-threads", "1")
        client = Client(fleet.frontend)
        fleet.wait_for_workers(client, 2)
    with client:
        results = generate(client, console)
        sheet = make_sheet(results)
        sheet.save(OUT / "sheet.png")
        console.print(
            f"{len(results)} images are in [bold]{OUT}/[/bold], on one sheet in [bold]{OUT / 'sheet.png'}[/bold]"
        )
        console.print(stats_table(client.stats()))
    command = os.path.relpath(Path(sys.executable).with_name("imagegen"))
    console.print(f"For your own images, in a browser: [bold]{command} up[/bold], then http://127.0.0.1:8000")


def generate(client: Client, console: Console) -> list[GenerationResult]:
    """Send all prompts at once, save each image when it arrives, and return the results in order."""
    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("generating", total=len(PROMPTS))
        jobs = [client.submit(prompt, seed=SEED + index) for index, prompt in enumerate(PROMPTS)]
        results = []
        for index, job in enumerate(jobs):
            result = job.result()
            result.save(OUT / f"{index:02d}-{PROMPTS[index].replace(' ', '-')}.png")
            results.append(result)
            bar.advance(task)
    return results


def make_sheet(results: list[GenerationResult]) -> Image.Image:
    """Return a contact sheet of all results with their prompts."""
    labels = [prompt.replace(" on ", "\non ") for prompt in PROMPTS]
    return contact_sheet([result.image for result in results], labels, columns=4, zoom=3)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
