"""What a server writes on standard error: a line for each request, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from arcweld.compiler.logs import printable


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, logger, message, and the fields it has as ``extra={"fields": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }  # fmt: skip
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """The same as words."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; what a terminal would obey is escaped."""
        fields = getattr(record, "fields", {})
        return printable(" ".join([super().format(record), *(f"{k}={v}" for k, v in fields.items())]))


def log_to_stderr(*, as_json: bool) -> None:
    """Writes what the server and uvicorn say on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("arcweld.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
