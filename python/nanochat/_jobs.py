"""Long things that the library does: records of them as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from nanochat._stream import SLICE
from nanochat._types import Progress


def records(job: Any) -> Iterator[tuple[dict[str, Any], int]]:
    """The records of a job, with the number of the finish; the last has one. An interrupt cancels the job, and an
    error of it is raised."""
    try:
        while True:
            for text, finish in job.read(SLICE):
                if text:
                    yield json.loads(text), finish
                if finish:
                    return
    finally:
        job.cancel()


def result(job: Any, name: str, report: Callable[[Progress], None] | None) -> dict[str, Any]:
    """Waits for the result of a download or check, and reports how far it is."""
    begin, p = time.monotonic(), None
    try:
        for record, finish in records(job):
            if finish:
                if report is not None and p is not None:
                    report(Progress(name, "done", p.total or p.done, p.total, time.monotonic() - begin))
                return record
            if report is not None and record.get("type") == "progress":
                p = Progress(name, record["state"], record["done"], record["total"], time.monotonic() - begin)
                report(p)
        return {}
    finally:
        job.close()
