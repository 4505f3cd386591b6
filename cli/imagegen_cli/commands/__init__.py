"""The subcommands of `imagegen`, one module each, imported only when they are called (`main.COMMANDS`)."""
