"""Continuous batching of unmodified pipelines. Nothing in this package depends on torch.

Start with `calls` and `scheduler`: there calls of several requests share forwards. `turns` and `limits` decide
which ones, and `engine` is the worker's device thread built on them. The torch side is in `backends/diffusers`:
`layouts` (which calls can share), `batched_module` (the models) and `pipeline_batcher` (the pipelines).
"""

from imagegen_worker.engines.continuous.engine import ContinuousEngine, StepwiseBackend

__all__ = ["ContinuousEngine", "StepwiseBackend"]
