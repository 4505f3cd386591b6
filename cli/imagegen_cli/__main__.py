"""The entry point of the `imagegen` command; also `python -m imagegen_cli`."""

import sys

EXIT_USAGE = 2


def main() -> None:
    """Run the command, or say how to install what it needs."""
    try:
        from imagegen_cli.main import main as run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.stderr.write(
            f"error: the imagegen command needs the Python package {error.name}, which is not installed: "
            "pip install 'imagegen-fleet[cli]'\n"
        )
        sys.exit(EXIT_USAGE)
    run()


if __name__ == "__main__":
    main()
