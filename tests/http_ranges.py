"""A loopback web server that answers range requests, as object stores and their mirrors do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args, has_ranges: bool, **kwargs) -> None:
        self._has_ranges = has_ranges
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        """A part of a file where one is asked for, else what the standard library answers."""
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        if not wanted or not self._has_ranges or not path.is_file():
            super().do_GET()
            return
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        data = path.read_bytes()
        part = data[first : last + 1]
        self.send_response(206 if part else 416)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        """Quiet where a reader has seen enough and hangs up."""


@contextmanager
def serve_folder(folder: Path, *, has_ranges: bool = True) -> Iterator[str]:
    """The URL of a folder that is served while the context lasts."""
    handler = partial(_Handler, directory=str(folder), has_ranges=has_ranges)
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
