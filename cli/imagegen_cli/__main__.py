"""Entry point of the `imagegen` command and of `python -m imagegen_cli`."""

import sys

EXIT_USAGE = 2


def main() -> None:
    """Run the command; exit with an error if a package that it needs is not installed."""
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
