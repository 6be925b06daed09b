"""The `structured_outputs` of a job file: schema files beside it, and grammars that are refused before any work.

A schema's file can only be named by the job: rows come from anywhere and must not make a run read files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.paths import expand_variables
from jobs.settings import Section
from nanovllm import ConfigError, RequestError, SamplingParams, check_structured_outputs

FILE_KEY = "json_file"
_LARGEST_SCHEMA_BYTES = 1 << 20


def read_structured_outputs(section: Section, folder: Path) -> Any:
    """Read the setting of a job with the text of its schema file in it.

    Args:
        section: the sampling section.
        folder: the job file's folder.

    Raises:
        ConfigError: the file cannot be read, the setting is refused or its grammar cannot be enforced.
    """
    values = section.mapping()["structured_outputs"]
    if not isinstance(values, dict):
        return values  # refused with all other settings, or null
    values = dict(values)
    if FILE_KEY in values:
        values["json"] = _schema_of_file(section, folder, values)
        del values[FILE_KEY]
    place = section.place("structured_outputs")
    try:
        params = SamplingParams(structured_outputs=values)
        check_structured_outputs(params)
    except ConfigError as error:
        raise ConfigError(f"{place}: {str(error).removeprefix('sampling: ')}") from None
    except RequestError as error:
        raise ConfigError(f"{place}: {error.message}") from None
    # In one form: the order of a schema's properties counts, and a mapping's order is not looked at everywhere.
    return params.to_dict()["structured_outputs"]


def read_schema(path: Path, place: str) -> str:
    """Read the text of a schema file; `place` says in messages where it was named. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_SCHEMA_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{place}: the schema {path} cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST_SCHEMA_BYTES:
        raise ConfigError(f"{place}: {path} is larger than {_LARGEST_SCHEMA_BYTES} bytes: this is no schema to follow")
    try:
        text = data.decode("utf-8-sig")
        SamplingParams(structured_outputs={"json": text})
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: {path} is not valid UTF-8 at byte {error.start + 1}: save it as UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{place}: {path}: {str(error).removeprefix('sampling: structured_outputs.')}") from None
    return text


def _schema_of_file(section: Section, folder: Path, values: dict[str, Any]) -> str:
    place = section.place("structured_outputs", FILE_KEY)
    name = values[FILE_KEY]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{place}: expected the path of a JSON schema, found {name!r}")
    if values.get("json") is not None:
        raise ConfigError(f"{place}: json is given too: keep one")
    path = Path(expand_variables(name, place)).expanduser()
    folders = [folder, Path.cwd()]
    found = next((start / path for start in folders if (start / path).is_file()), folder / path)
    return read_schema(found, place)
