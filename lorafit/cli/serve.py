"""`lorafit serve`: watch a run in the browser while it goes on."""

from pathlib import Path
from typing import Annotated

from lorafit.cli import console
from lorafit.cli.options import RUN_ARGUMENT, Port


def command(
    run: Annotated[str, RUN_ARGUMENT],
    port: Port = 0,
) -> None:
    """Serve a run's report to this machine, growing while the run goes on. Ctrl-C ends it.

    Only this machine can open it. For a run on another machine, forward the port:
    ssh -L 8321:localhost:8321 HOST lorafit serve outputs/first --port 8321

    Example: lorafit serve outputs/first
    """
    from lorafit.report.html.live import LiveRun, LiveServer

    with LiveServer(LiveRun(Path(run)), port) as server:
        console.out(server.url)
        console.say("next: open this address in a browser; Ctrl-C ends the server, not the run")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            console.say("stopped; the run is not affected")
