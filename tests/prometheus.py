"""A real Prometheus with the configuration that is shipped, but for addresses and intervals."""

import re
import shutil
import subprocess
from pathlib import Path

import psutil
import yaml

from tests.programs import needs
from tests.waiting import wait_until

SHIPPED = Path(__file__).parents[1] / "configs" / "prometheus"
needs_prometheus = needs("prometheus")


def with_gateway(text):
    """Return the shipped configuration as an operator with a gateway makes it: its job is no comment any more."""
    head, comment = re.search(r"^(  # With an imagegen-gateway.*\n)((?:  #.*\n)+)", text, re.MULTILINE).groups()
    return text.replace(head + comment, re.sub(r"^  # ?", "  ", comment, flags=re.MULTILINE))


class PrometheusServer:
    """Runs in a folder until the context is left; `targets` is where a broker is to list its workers."""

    def __init__(self, folder, interval="200ms"):
        self._folder = folder
        self._interval = interval
        self.targets = folder / "targets.json"
        shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)

    def start(self, broker, *more_workers, gateway):
        """Scrape a broker (HOST:PORT), its workers, what else is said to be a worker's, and a gateway."""
        config = yaml.safe_load(with_gateway((SHIPPED / "prometheus.yml").read_text()))
        config["global"] = {"scrape_interval": self._interval, "evaluation_interval": self._interval}
        brokers, workers, gateways = config["scrape_configs"]
        brokers["static_configs"][0]["targets"] = [broker]
        gateways["static_configs"][0]["targets"] = [gateway]
        workers["static_configs"] = [{"targets": list(more_workers)}]
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = (self._folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=self._log,
            stderr=self._log,
        )
        return self

    def url(self):
        """Where it listens, once it does."""
        process = psutil.Process(self._process.pid)

        def port():
            assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
            return [one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]

        return f"http://127.0.0.1:{wait_until(port, 'listening Prometheus')[0]}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._log.close()
