"""`promtool`, which has the last word on metrics and rules; tests that need it are skipped where it is not."""

import subprocess

from tests.programs import needs

needs_promtool = needs("promtool")


def promtool(*arguments, text=None):
    """Run it; return its status and all that it said."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=text, capture_output=True, text=True, timeout=100, check=False
    )
    return done.returncode, done.stdout + done.stderr
