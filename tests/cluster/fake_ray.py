"""Ray's launcher as far as a test needs it: notes what it is told; its tunnel leads to a head on this machine.

FAKE_RAY_LOG: where the words go. FAKE_RAY_DASHBOARD: the port behind the tunnel. FAKE_RAY_FAILS: a word that fails.
"""

import os
import shutil
import socket
import sys
import threading
from pathlib import Path


def pump(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(1 << 16):
        target.sendall(data)
    target.close()


def tunnel(port: int, behind: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", behind))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()


def main() -> None:
    word, *rest = sys.argv[1:]
    with open(os.environ["FAKE_RAY_LOG"], "a", encoding="utf-8") as log:
        log.write(" ".join([word, *rest]) + "\n")
    if word == os.environ.get("FAKE_RAY_FAILS"):
        sys.exit(7)
    if word == "dashboard":
        tunnel(int(rest[rest.index("--port") + 1]), int(os.environ["FAKE_RAY_DASHBOARD"]))
    if word == "rsync-down":
        shutil.copytree(rest[1], Path(rest[2]), dirs_exist_ok=True)


main()
