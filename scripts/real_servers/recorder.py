"""Stand before one or more servers, pass every request on, and keep what was asked and answered.

usage: recorder.py PORT RECORD.jsonl UPSTREAM_PORT...

Requests go to the upstreams in turn, which makes a router of it where there are several. Every exchange becomes a line
of the record: path, request, status, headers, body, upstream. Nothing is changed on the way.
"""

import http.client
import itertools
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


def main() -> None:
    port, record, upstreams = int(sys.argv[1]), sys.argv[2], [int(port) for port in sys.argv[3:]]
    turn, lock = itertools.cycle(upstreams), threading.Lock()

    class Recorder(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.pass_on()

        def do_POST(self) -> None:
            self.pass_on()

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            with lock:
                upstream = next(turn)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=300)
            try:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            except OSError as error:
                self.send_error(502, str(error))
                return
            finally:
                connection.close()
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
            if self.command == "POST":
                line = {
                    "path": self.path,
                    "request": body.decode(errors="replace"),
                    "status": answer.status,
                    "headers": dict(kept),
                    "body": content.decode(errors="replace"),
                    "bytes": len(content),
                    "upstream": upstream,
                }
                with lock, open(record, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            self.send_response_only(answer.status)
            for name, value in kept:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Recorder).serve_forever()


if __name__ == "__main__":
    main()
