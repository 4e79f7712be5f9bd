"""What stands between a program and the servers that it asks, and meddles when it is told to: to
have something happen in the middle of a request, or have an answer that is not as it should be.
Listens on loopback alone."""

import http.client
import http.server
import re
import socket
import ssl
import threading


class Cut(Exception):
    """The connection breaks off here."""


class Wire:
    """Carries TCP to a port of 127.0.0.1."""

    def __init__(self, to):
        self.to, self.waits = to, None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def when(self, word, act, arrives):
        """Has `act` done once, as soon as somebody says `word`: before that arrives, or after.
        What is answered to it is lost. Returns an event that is set then."""
        happened = threading.Event()
        self.waits = (word, act, arrives, happened)
        return happened

    def accept(self):
        while True:
            caller, _ = self.listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.to), timeout=5)
            except OSError:
                caller.close()
                continue
            server.settimeout(None)
            for one, other, asks in ((caller, server, True), (server, caller, False)):
                threading.Thread(target=self.carry, args=(one, other, asks), daemon=True).start()

    def carry(self, one, other, asks):
        try:
            while said := one.recv(1 << 16):
                waits = self.waits
                if asks and waits and waits[0] in said:
                    self.waits = None
                    _, act, arrives, happened = waits
                    if arrives:
                        # Nobody gets the answer.
                        other.sendall(said)
                        other.shutdown(socket.SHUT_WR)
                    act()
                    happened.set()
                    break
                other.sendall(said)
        except OSError:
            pass
        for end in (one, other):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Meddler:
    """Carries SOAP by HTTPS to the same address, another port. `meddle` is given each call's name
    and a function that carries it on; it answers what the program is to get, or raises Cut."""

    NAME = re.compile(rb"<(?:\w+:)?Body[^>]*>\s*<(\w+)")

    def __init__(self, address, port, to, certificate):
        self.meddle = None
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                name = owner.NAME.search(body)
                meddle = owner.meddle
                try:
                    carried = None

                    def carry():
                        nonlocal carried
                        carried = owner.ask(address, to, self.headers, body)
                        return carried[1]

                    answer = meddle(name.group(1).decode() if name else "", carry) if meddle else carry()
                except (Cut, OSError, http.client.HTTPException) as cut:
                    self.close_connection = True
                    if isinstance(cut, Cut) and cut.args:
                        # Half of it.
                        self.tell(200, {}, cut.args[0], len(cut.args[0]) * 2)
                    return
                status, headers = (carried[0], carried[2]) if carried else (200, {})
                self.tell(status, headers, answer, len(answer))

            def tell(self, status, headers, body, length):
                try:
                    self.send_response(status)
                    for header, value in headers.items():
                        self.send_header(header, value)
                    self.send_header("Content-Type", "text/xml")
                    self.send_header("Content-Length", str(length))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """Who gives a conversation up is no fault."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, f"{certificate}.key")
        self.server = Server((address, port), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def ask(address, port, headers, body):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        server = http.client.HTTPSConnection(address, port, context=context)
        kept = {name: value for name, value in headers.items() if name.lower() in ("cookie", "soapaction", "content-type")}
        try:
            server.request("POST", "/sdk", body, kept)
            answer = server.getresponse()
            read = answer.read()
            cookies = {"Set-Cookie": answer.headers["Set-Cookie"]} if answer.headers["Set-Cookie"] else {}
            return answer.status, read, cookies
        finally:
            server.close()
