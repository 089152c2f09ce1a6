"""Files of fitted models: JSON with version and checksum, written in one step so that a crash leaves the old one.

Latency profiles and the accuracy prior are kept like this.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

MAX_BYTES = 2_000_000


def write_model(path: Path, content: dict[str, Any], schema: int) -> None:
    """Writes a model's file over an older one, with schema version and checksum. `content` is plain values."""
    body = {"schema": schema, **content}
    text = json.dumps({**body, "checksum": checksum(body)}, indent=1, allow_nan=False)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def checksum(body: dict[str, Any]) -> str:
    """The checksum of a file's content without its checksum."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_model(path: Path, kind: str, schema: int, remedy: str) -> dict[str, Any]:
    """The content of a model's file, its checksum verified.

    Args:
        kind: what it should be ("profile"), for errors.
        schema: the newest version that can be read; older ones are, too.
        remedy: what to do about a file that cannot be used ("calibrate again").

    Raises ValueError in one line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"not a {kind}: {path} has more than {MAX_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {kind} {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"broken {kind} {path}: not JSON ({error!s:.100})") from None
    if not isinstance(data, dict) or type(data.get("schema")) is not int or "checksum" not in data:
        raise ValueError(f"not a {kind}: {path} lacks schema and checksum")
    if data["schema"] > schema:
        raise ValueError(
            f"{kind} {path} is of schema {data['schema']}, newer than the {schema} that this version of lownas reads: "
            f"update lownas, or {remedy}"
        )
    given = data.pop("checksum")
    if given != checksum(data):
        raise ValueError(f"{kind} {path} was altered after it was saved (its checksum differs): {remedy}")
    return data
