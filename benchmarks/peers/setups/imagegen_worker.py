"""`imagegen-worker` with what the other peers' device has: an account of executions, and work that takes no time.

The simulated backend draws each image, for half a millisecond, where the others' no-op work returns bytes that are
there: here it returns an image that is there. It is encoded for each request nonetheless.
"""

from unittest.mock import patch

from PIL import Image

from benchmarks.peers.setups.device import Account, Work
from imagegen_worker.backends import OnStep, Row, simulated
from imagegen_worker.cli import main


def run() -> None:
    """Run the worker's command."""
    work = Work.of_environment()
    draw, generate = simulated.draw, simulated.SimulatedBackend.generate
    drawn: list[Image.Image] = []
    account = Account(work)

    def draw_once(row: Row, worker: str) -> Image.Image:
        if not drawn:
            drawn.append(draw(row, worker))
        return drawn[0]

    def generate_noted(backend: simulated.SimulatedBackend, rows: list[Row], on_step: OnStep) -> list[Image.Image]:
        numbers = [row.request.prompt for row in rows]
        account.note("begun", numbers)
        images = generate(backend, rows, on_step)
        account.note("ended", numbers)
        return images

    if work.costs_nothing:
        with patch.object(simulated, "draw", draw_once):
            main()
    else:
        with patch.object(simulated.SimulatedBackend, "generate", generate_noted):
            main()


if __name__ == "__main__":
    run()
