"""An HTTP server that receives webhooks, in a thread of the test process."""

import json
import queue
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Receiver:
    """Responds with the given statuses, then with 200; `calls` has the received headers and bodies."""

    def __init__(self, *statuses):
        self.calls = queue.Queue()
        remaining = list(statuses)
        calls = self.calls

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                calls.put((dict(self.headers.items()), body))
                status = remaining.pop(0) if remaining else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def next(self):
        """Wait for a webhook; return its headers and its decoded body."""
        headers, body = self.calls.get(timeout=60)
        return headers, json.loads(body)

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
