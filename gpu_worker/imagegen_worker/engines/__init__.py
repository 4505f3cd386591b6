"""The engines: each owns the device thread and turns jobs into images (`static`, `continuous`)."""
