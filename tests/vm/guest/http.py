"""Send one HTTP request to a Unix socket and print the whole answer: `http.py SOCKET METHOD PATH`, body on stdin."""

import socket
import sys

path, method, url = sys.argv[1:4]
body = sys.stdin.buffer.read()
kind = b"Content-Type: application/json\r\n" if body else b""
head = f"{method} {url} HTTP/1.0\r\nHost: docker\r\nContent-Length: {len(body)}\r\n".encode()
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(path)
    connection.sendall(head + kind + b"\r\n" + body)
    while received := connection.recv(65536):
        sys.stdout.buffer.write(received)
