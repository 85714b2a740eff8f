"""A container as a process: ``python misbehaving_container.py BEHAVIOUR``."""

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from containers import sums

BEHAVIOUR = sys.argv[-1]
DONE = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """Answers some requests, then does what it is meant to."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    count = 0

    def do_GET(self) -> None:
        self.reply(200 if self.path == "/ping" else 404, b"")

    def do_POST(self) -> None:
        Handler.count += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if BEHAVIOUR == "die" and Handler.count > 5:
            print("about to die", flush=True)
            os._exit(7)
        if BEHAVIOUR == "hang":
            threading.Event().wait()
        self.reply(200, sums(body))

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/csv")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def end(_number: int, _frame: object) -> None:
    print("got SIGTERM", flush=True)
    if BEHAVIOUR != "stubborn":
        DONE.set()


def main() -> None:
    signal.signal(signal.SIGTERM, end)
    if BEHAVIOUR == "never":
        sys.exit(3)
    if BEHAVIOUR == "environment":
        for name, value in os.environ.items():
            if name.startswith("SAGEMAKER_") or name == "COLOUR":
                print(f"{name}={value}", flush=True)
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    DONE.wait()


if __name__ == "__main__":
    main()
