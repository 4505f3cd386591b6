"""`python -m imagegen_worker`: how the supervisor starts a worker."""

from imagegen_worker.cli import main

if __name__ == "__main__":
    main(prog_name="imagegen-worker")
