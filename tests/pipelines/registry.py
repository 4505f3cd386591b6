"""The pipeline classes that diffusers exports, and the mappings of its `AutoPipeline` classes."""

import diffusers
from diffusers.pipelines import auto_pipeline

from imagegen_worker.backends.diffusers.pipeline_classes import refusal

_NO_IMAGES = ("not images", "can be called")


def exported():
    """Return every exported pipeline class by name, those that need a missing package included."""
    names = [name for name in dir(diffusers) if name.endswith("Pipeline") and name != "DiffusionPipeline"]
    return {name: getattr(diffusers, name) for name in sorted(names) if not name.endswith("ModularPipeline")}


def auto_mapped():
    """Return the names of the classes in the image mappings of `AutoPipelineFor...`."""
    kinds = ("TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT")
    mappings = [getattr(auto_pipeline, f"AUTO_{kind}_PIPELINES_MAPPING") for kind in kinds]
    return {pipeline.__name__ for mapping in mappings for pipeline in mapping.values()}


def image_pipelines():
    """Return the names of the exported classes that generate images, in order."""
    return [name for name, kind in exported().items() if not (refusal(kind) or "").endswith(_NO_IMAGES)]


def other_pipelines():
    """Return the names of the exported classes that generate something else."""
    return sorted(exported().keys() - set(image_pipelines()))
