"""Echo servers for both families: `serve.py NAME tcp:PORT udp:PORT …`. They answer as the lab's servers do."""

import selectors
import socket
import sys

PKTINFO, RECVPKTINFO = 50, 49  # IPV6_PKTINFO, IPV6_RECVPKTINFO
name, chosen = sys.argv[1], selectors.DefaultSelector()


def intro(peer):
    """Return a server's introduction to a client, as JSON."""
    address = peer[0].removeprefix("::ffff:") if hasattr(str, "removeprefix") else peer[0].replace("::ffff:", "")
    return f'{{"server": "{name}", "peer": "{address}", "peer_port": {peer[1]}, "received": ""}}\n'.encode()


def accept(sock):
    """Send the introduction, then echo."""
    client, peer = sock.accept()
    client.setblocking(False)
    client.send(intro(peer))
    chosen.register(client, selectors.EVENT_READ, echo)


def echo(client):
    """Echo until the client disconnects."""
    received = b""
    try:
        received = client.recv(65536)
        client.send(received)
    except OSError:
        pass
    if not received:
        chosen.unregister(client)
        client.close()


def answer(sock):
    """Answer a datagram, from the address to which it was sent."""
    _, info, _, peer = sock.recvmsg(65536, 256)
    info = [(level, kind, data[:16] + bytes(4)) for level, kind, data in info if kind == PKTINFO]
    sock.sendmsg([intro(peer)], info, 0, peer)


for word in sys.argv[2:]:
    proto, _, port = word.partition(":")
    server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if proto == "udp":
        server.setsockopt(socket.IPPROTO_IPV6, RECVPKTINFO, 1)
    server.bind(("::", int(port)))
    if proto == "tcp":
        server.listen(64)
    server.setblocking(False)
    chosen.register(server, selectors.EVENT_READ, accept if proto == "tcp" else answer)
print("ready", flush=True)
while True:
    for key, _ in chosen.select():
        try:
            key.data(key.fileobj)
        except OSError:
            pass
