"""A worker process: `python -m edgeguard.proxy.workers DESCRIPTOR`. Only the supervisor starts it."""

import signal
import socket
import sys

import uvloop

from edgeguard.proxy.workers.worker import work

if __name__ == "__main__":
    # A terminal sends these to all of its processes; what they mean here is the supervisor's to say.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as end:
        sys.exit(uvloop.run(work(end)))
