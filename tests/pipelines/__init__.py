"""Every image pipeline of the installed diffusers, served by the engine: the table in docs/models.md."""
