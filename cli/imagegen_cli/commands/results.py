"""Files and output lines of `imagegen generate`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagegen_cli.commands.errors import describe, describe_warning
from imagegen_cli.commands.generation import Outcome, ProgressView
from imagegen_cli.output_files import OutputFiles
from imagegen_client.result import GenerationResult
from imagegen_protocol import ImagegenError, ProtocolError


class NotWrittenError(ImagegenError):
    """The image was received, but could not be converted or written."""

    code = "not_written"


class ResultWriter:
    """Writes the images and prints the outcome of each request; `failed` counts errors.

    `quiet` prints only the paths of the files, `as_json` one JSON object per request; `show` also prints the
    images.
    """

    def __init__(
        self, output: OutputFiles, view: ProgressView, *, quiet: bool, as_json: bool, show: bool = False
    ) -> None:
        self.failed = 0
        self._output = output
        self._view = view
        self._quiet = quiet
        self._as_json = as_json
        self._show = show

    def write(self, outcome: Outcome) -> None:
        """Write the images of a result and print its lines, or print the error."""
        request, result, error = outcome.request, outcome.result, outcome.error
        files: list[Path] = []
        if result is not None:
            try:
                files = self._output.write(request, result)
            except (OSError, ValueError) as problem:
                error = NotWrittenError(f"{problem} (seed {result.seed}, worker {result.worker})")
            except ImagegenError as problem:
                error = problem
        self._view.ended(request, succeeded=error is None)
        self.failed += error is not None
        if error is not None:
            self._view.print_line(describe(error, request.where), err=True)
        for warning in () if result is None else result.warnings:
            self._view.print_line(describe_warning(warning, request.where), err=True)
        for line in self._lines(replace(outcome, error=error), files):
            self._view.print_line(line)
        if self._show and result is not None and error is None:
            self._show_images(result)

    def _show_images(self, result: GenerationResult) -> None:
        try:
            for image in result.images:
                self._view.print_image(image)
        except (OSError, ProtocolError) as problem:
            self._view.print_line(f"warning: the image cannot be shown: {problem}", err=True)

    def _lines(self, outcome: Outcome, files: list[Path]) -> list[str]:
        result, error = outcome.result, outcome.error
        if self._as_json:
            return [json.dumps(as_json(outcome, files), ensure_ascii=False)]
        lines = [str(path) for path in files]
        if result is not None and error is None and not self._quiet:
            lines.append(f"seed={result.seed} worker={result.worker} seconds={result.total_seconds:.2f}")
        return lines


def as_json(outcome: Outcome, files: list[Path]) -> dict[str, Any]:
    """Return the JSON object that reports how a request ended: its files and result, or its error."""
    request, result, error = outcome.request, outcome.result, outcome.error
    common: dict[str, Any] = {
        "index": request.index,
        "prompt": request.prompt,
        "seed": request.seed,
        "request_id": outcome.request_id,
    }
    if error is not None:
        return {**common, "error": {"code": error.code, "message": error.message}}
    assert result is not None, "a request ends in a result or an error"
    return {
        **common,
        "files": [str(path) for path in files],
        "seeds": result.seeds,
        "worker": result.worker,
        "model": result.model,
        "seconds": round(result.total_seconds, 3),
        "batch_size": result.batch_size,
        "attempt": result.attempt,
        "parameters": result.parameters,
        **({"warnings": result.warnings} if result.warnings else {}),
    }
