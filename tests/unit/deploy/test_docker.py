"""The images' recipes: linted, and true to the project. No container engine is needed, and none is tried."""

import fnmatch
import re
import socket
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.unit.deploy.commands import BROKER_PORTS, DEPLOY, GATEWAY_PORT, ROOT, WORKER_HTTP_PORT
from tools.lock import EXTRAS, LOCKS

RECIPES = {path.suffix[1:]: path for path in (DEPLOY / "docker").glob("Dockerfile.*")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXPOSED = {
    "broker": set(BROKER_PORTS.values()),
    "gateway": {GATEWAY_PORT},
    "worker": {WORKER_HTTP_PORT},
    "client": set(),
}


def instructions(role):
    """The recipe's instructions, comments and continued lines put away: pairs of word and rest."""
    text = re.sub(r"^#.*\n", "", RECIPES[role].read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def rests(role, word):
    return [rest for name, rest in instructions(role) if name == word]


@pytest.fixture(params=sorted(EXPOSED))
def role(request):
    return request.param


def test_there_is_one_for_each_role():
    assert set(RECIPES) == set(EXPOSED)


def test_hadolint_finds_nothing(role):
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, RECIPES[role]], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_is_no_root_that_runs(role):
    words = [name for name, _ in instructions(role)]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert rests(role, "USER") == ["${UID}:${UID}"]
    assert "UID=10001" in rests(role, "ARG")


def test_it_starts_a_command_of_the_project(role):
    (entry,) = rests(role, "ENTRYPOINT")
    program = entry.strip("[]").split(", ")[-1].strip('"')
    assert program in PROJECT["scripts"]
    assert program == ("imagegen" if role == "client" else f"imagegen-{role}")


def test_the_lock_is_the_roles_own(role):
    (lock,) = [rest for rest in rests(role, "ARG") if rest.startswith("LOCK=")]
    name = lock.removeprefix("LOCK=deploy/docker/locks/").removesuffix(".txt")
    if role == "worker":
        assert name == "${EXTRA}"
        assert "EXTRA=worker" in rests(role, "ARG")
        assert EXTRAS["worker-simulated"] == "worker-simulated"
        name = "worker"
    assert EXTRAS[name] == ("cli" if role == "client" else role)
    packages = re.findall(r"^([\w-]+)==", (LOCKS / f"{name}.txt").read_text(), re.MULTILINE)
    assert "click" in packages, "every image starts a command"
    assert ("torch" in packages) == (role == "worker")


def test_open_ports_are_the_commands_own(role):
    assert {int(port) for rest in rests(role, "EXPOSE") for port in rest.split()} == EXPOSED[role]
    for check in rests(role, "HEALTHCHECK"):
        assert check == "NONE" or int(re.search(r'"(\d+)[-"]', check)[1]) in EXPOSED[role]


def test_all_that_is_copied_is_in_the_context(role):
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert [path for path in kept if not (ROOT / path).exists()] == []
    for rest in rests(role, "COPY"):
        if not rest.startswith("--from") and not rest.startswith(". "):
            assert rest.split()[0] in kept
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for path in (*build["packages"], PROJECT["readme"], *PROJECT["license-files"], "deploy/docker/locks"):
        assert any(fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/") for pattern in kept), path


# ---- the health check ----


@pytest.fixture
def serve():
    """Start servers that answer everything with one status; returns the port."""
    servers = []

    def start(status, port=0):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status if self.path == "/healthz" else 404)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", port), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return servers[-1].server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def health(*arguments):
    words = [sys.executable, DEPLOY / "docker/healthcheck.py", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, timeout=100).returncode


def test_an_answer_is_health(serve):
    assert health(serve(200)) == 0


def test_another_answer_is_none(serve):
    assert health(serve(503)) == 1


@pytest.fixture
def closed():
    """A port that nobody serves, and nobody else can have."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_a_closed_port_is_none(closed):
    assert health(closed) == 1


def test_one_of_several_ports_is_enough_and_none_may_be_ill(serve, closed):
    well = serve(200)
    assert health(closed, well) == 0
    assert health(well, serve(503)) == 1


def test_ports_may_be_a_range(serve):
    well = serve(200)
    assert health(f"{well}-{well}") == 0
