"""Continuous batching of unmodified pipelines. Nothing in this package knows torch.

Read `calls` and `hub` first: there requests come together. `fairness` and `limits` decide who shares a forward,
`engine` is the worker's device thread built on them. What is special about torch stands in `backends/diffusers`:
`joining` (which calls can share), `stages` (the models), `rendezvous` (the pipelines).
"""

from imagegen_worker.engines.continuous.engine import ContinuousEngine, StepwiseBackend

__all__ = ["ContinuousEngine", "StepwiseBackend"]
