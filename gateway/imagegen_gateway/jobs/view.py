"""Conversion of jobs into API responses."""

from typing import Any

from imagegen_gateway.errors import ErrorObject
from imagegen_gateway.jobs.progress import JobProgress, image_data_url
from imagegen_gateway.jobs.store import Job
from imagegen_gateway.schemas import responses


def to_response(job: Job, progress: JobProgress | None) -> responses.Job:
    """Return a job as the API shows it, with its progress while it has not ended."""
    return responses.Job(**_fields(job, progress))


def to_event(job: Job, progress: JobProgress | None, preview: bytes | None = None) -> responses.JobEvent:
    """Return the data of a job event: the job and a preview."""
    return responses.JobEvent(
        **_fields(job, progress), preview=None if preview is None else image_data_url(preview)
    )


def _fields(job: Job, progress: JobProgress | None) -> dict[str, Any]:
    state = job.state
    if progress is not None and progress.latest is not None and job.finished is None:
        # More recent than the store: a running request is requeued if its worker dies.
        state = "running" if progress.latest.state == "running" else "queued"
    return {
        "id": job.id,
        "state": state,
        "prompt": job.prompt,
        "model": job.options.get("model"),
        "seed": job.options["seed"],
        "n": job.options.get("num_images", 1),
        "created_at": int(job.created),
        "started_at": _whole(job.started),
        "finished_at": _whole(job.finished),
        "expires_at": _whole(job.expires),
        "images": None if job.images is None else [_image(job, image) for image in job.images],
        "warnings": (job.images[0].get("warnings") or None) if job.images else None,
        "error": None if job.error is None else ErrorObject(**job.error),
        "webhook_url": job.webhook_url,
        **(progress.fields() if progress is not None and job.finished is None else {}),
    }


def _image(job: Job, image: dict[str, Any]) -> responses.StoredImage:
    name = image["file"]
    return responses.StoredImage(
        url=f"{job.base_url}/v1/files/{name}",
        seed=image["seed"],
        width=image["width"],
        height=image["height"],
        format=name.rpartition(".")[2],
    )


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
