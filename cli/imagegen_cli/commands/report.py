"""What `imagegen generate` writes and says of each answer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagegen_cli.commands.errors import describe
from imagegen_cli.commands.generation import Outcome, Watcher
from imagegen_cli.output_files import Targets
from imagegen_protocol import ImagegenError


class NotWrittenError(ImagegenError):
    """The picture came, and could not be written or converted."""

    code = "not_written"


class Reporter:
    """Writes pictures and prints what came of each request; `failed` counts the errors.

    Lines for people, with `quiet` the files' names alone, or with `as_json` an object for each request.
    """

    def __init__(self, targets: Targets, watcher: Watcher, *, quiet: bool, as_json: bool) -> None:
        self.failed = 0
        self._targets = targets
        self._watcher = watcher
        self._quiet = quiet
        self._as_json = as_json

    def take(self, outcome: Outcome) -> None:
        """Write the pictures of an answer, or tell its error."""
        order, result, error = outcome.order, outcome.result, outcome.error
        files: list[Path] = []
        if result is not None:
            try:
                files = self._targets.write(order, result)
            except (OSError, ValueError) as problem:
                error = NotWrittenError(f"{problem} (seed {result.seed}, worker {result.worker})")
            except ImagegenError as problem:
                error = problem
        self._watcher.end(order, good=error is None)
        self.failed += error is not None
        if error is not None:
            self._watcher.say(describe(error, order.where), err=True)
        for line in self._lines(replace(outcome, error=error), files):
            self._watcher.say(line)

    def _lines(self, outcome: Outcome, files: list[Path]) -> list[str]:
        result, error = outcome.result, outcome.error
        if self._as_json:
            return [json.dumps(as_json(outcome, files), ensure_ascii=False)]
        lines = [str(path) for path in files]
        if result is not None and error is None and not self._quiet:
            lines.append(f"seed={result.seed} worker={result.worker} seconds={result.total_seconds:.2f}")
        return lines


def as_json(outcome: Outcome, files: list[Path]) -> dict[str, Any]:
    """Return what is told of a request with `--json`."""
    order, result, error = outcome.order, outcome.result, outcome.error
    said: dict[str, Any] = {
        "index": order.index,
        "prompt": order.prompt,
        "seed": order.seed,
        "request_id": outcome.request_id,
    }
    if error is not None:
        return {**said, "error": {"code": error.code, "message": error.message}}
    assert result is not None, "a request ends in a result or an error"
    return {
        **said,
        "files": [str(path) for path in files],
        "seeds": result.seeds,
        "worker": result.worker,
        "model": result.model,
        "seconds": round(result.total_seconds, 3),
        "batch_size": result.batch_size,
        "attempt": result.attempt,
        "parameters": result.parameters,
    }
