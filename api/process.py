"""One API process: logs, the listening socket, the application and its server."""

from __future__ import annotations

import sys

import structlog

from api.app import create_app
from api.auth import check_jwt_settings
from api.server import Server, listen, raise_open_files
from kernel.errors import BadSettings
from kernel.log import configure_logs
from kernel.settings import Settings


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. Exits with 2 for bad settings, 1 for an address that can't be had."""
    try:
        check_jwt_settings(settings)
    except BadSettings as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(2)
    configure_logs(settings)
    log = structlog.get_logger("api")
    raise_open_files()
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        log.error("address_not_available", host=settings.host, port=settings.port, error=str(error))
        sys.exit(1)
    host, port = listener.getsockname()[:2]
    log.info("listening", host=host, port=port)
    app = create_app(settings)
    Server(app, end_streams=app.end_streams, write_timeout=settings.write_timeout).run(sockets=[listener])
