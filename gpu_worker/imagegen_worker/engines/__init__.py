"""The engines, static and continuous: each runs on the device thread and turns jobs into images."""
