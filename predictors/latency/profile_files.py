"""Profile files: JSON with a schema version and a checksum, written in one step so that a crash leaves the old one."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

SCHEMA = 2
"""Version of the profile files. Files of older versions are read, newer ones refused. 2: stacked models."""
MAX_PROFILE_BYTES = 2_000_000


def write_profile(path: Path, content: dict[str, Any]) -> None:
    """Writes a profile file over an older one, with schema version and checksum. `content` is plain values."""
    body = {"schema": SCHEMA, **content}
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
    """The checksum of a profile's content without its checksum."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_profile(path: Path) -> dict[str, Any]:
    """The content of a profile file, its checksum verified. Raises ValueError in one line."""
    try:
        if path.stat().st_size > MAX_PROFILE_BYTES:
            raise ValueError(f"not a profile: {path} has more than {MAX_PROFILE_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read profile {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"broken profile {path}: not JSON ({error!s:.100})") from None
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int) or "checksum" not in data:
        raise ValueError(f"not a profile: {path} lacks schema and checksum")
    if data["schema"] > SCHEMA:
        raise ValueError(
            f"profile {path} is of schema {data['schema']}, newer than the {SCHEMA} that this version of lownas reads: "
            "update lownas, or calibrate again"
        )
    given = data.pop("checksum")
    if given != checksum(data):
        raise ValueError(f"profile {path} was altered after it was saved (its checksum differs): calibrate again")
    return data
