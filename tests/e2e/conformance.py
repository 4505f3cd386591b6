"""The conformance tool as a process."""

import re
import subprocess
import sys

TOOL = (sys.executable, "-m", "imagegen_protocol.conformance")


class Tool:
    """The tool as a process that waits for a client or worker."""

    def __init__(self, role, *options):
        command = [*TOOL, role, "tcp://127.0.0.1:*", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.endpoint = self._process.stderr.readline().split()[-1]

    def finish(self):
        """Wait until the process ends; return its exit status and the table."""
        table, log = self._process.communicate(timeout=400)
        return self._process.returncode, table or log

    def stop(self):
        """End the process."""
        self._process.kill()
        self._process.communicate()


def results(table):
    """Return the result of each requirement; `fail` if one of its checks has failed."""
    found = {}
    for requirement, result in re.findall(r"^(R-[\d.]+) +(pass|fail|not tested) ", table, re.MULTILINE):
        found[requirement] = "fail" if "fail" in (result, found.get(requirement)) else result
    return found
