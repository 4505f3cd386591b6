"""A job as the API shows it."""

from typing import Any

from imagegen_gateway.errors import ErrorObject
from imagegen_gateway.jobs.live import Live, picture_url
from imagegen_gateway.jobs.store import Job
from imagegen_gateway.schemas import answers


def show(job: Job, live: Live | None) -> answers.Job:
    """Return what the API shows of a job, and of how it stands while it has not ended."""
    return answers.Job(**_fields(job, live))


def show_event(job: Job, live: Live | None, preview: bytes | None = None) -> answers.JobEvent:
    """Return what an event shows: the same, and a preview."""
    return answers.JobEvent(**_fields(job, live), preview=None if preview is None else picture_url(preview))


def _fields(job: Job, live: Live | None) -> dict[str, Any]:
    state = job.state
    if live is not None and live.sign is not None and job.finished is None:
        # What runs may come back to the queue: its worker has died.
        state = live.sign.state
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
        "error": None if job.error is None else ErrorObject(**job.error),
        "webhook_url": job.webhook_url,
        **(live.fields() if live is not None and job.finished is None else {}),
    }


def _image(job: Job, image: dict[str, Any]) -> answers.StoredImage:
    name = image["file"]
    return answers.StoredImage(
        url=f"{job.base_url}/v1/files/{name}",
        seed=image["seed"],
        width=image["width"],
        height=image["height"],
        format=name.rpartition(".")[2],
    )


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
