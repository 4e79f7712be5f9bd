"""Answers HTTP on 127.0.0.1:8080 and holds one open connection to Redis.

Ready (sd_notify) only once Redis has answered; ends when Redis closes the
connection, so that the declared dependency is also a real one.
"""

import os
import select
import socket


def notify(message: bytes) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message, address)


def ask(redis: socket.socket, command: bytes) -> bytes:
    redis.sendall(command + b"\r\n")
    answer = redis.recv(4096)
    if not answer:
        raise SystemExit("redis closed the connection")
    return answer


def answer(client: socket.socket, redis: socket.socket) -> None:
    client.settimeout(2)
    try:
        client.recv(4096)
        body = ask(redis, b"INCR visits")
        head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        client.sendall(head + body)
    except (TimeoutError, ConnectionError):
        pass
    finally:
        client.close()


def main() -> None:
    redis = socket.create_connection(("127.0.0.1", 6379), timeout=10)
    ask(redis, b"PING")
    server = socket.create_server(("127.0.0.1", 8080))
    notify(b"READY=1")
    while True:
        ready, _, _ = select.select([server, redis], [], [])
        if redis in ready and not redis.recv(4096):
            raise SystemExit("redis closed the connection")
        if server in ready:
            answer(server.accept()[0], redis)


main()
