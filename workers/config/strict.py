"""Base types of all descriptions: frozen models that refuse unknown keys and wrong types, names and paths."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("a name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit")
    return value


Name = Annotated[str, AfterValidator(_name)]


class Strict(BaseModel):
    """A frozen pydantic model that refuses unknown keys, wrong types and infinite numbers."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def check_path(path: Path) -> Path:
    """Return the path if it is valid. Raises ValueError otherwise."""
    if "\0" in str(path):
        raise ValueError("it holds a null byte, which no path does")
    try:
        Path(os.path.expandvars(path)).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user {path.parts[0].removeprefix('~')!r} on this machine") from None
    return path


FilePath = Annotated[Path, AfterValidator(check_path)]  # may contain `~` and environment variables


class Shorthand:
    """A pydantic annotation that adds a value's short form to the JSON Schema. A preceding validator expands it.

    Args:
        short: JSON Schema of the short form.
    """

    def __init__(self, short: JsonSchemaValue) -> None:
        self.short = short

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return a schema that accepts both forms."""
        return {"anyOf": [self.short, handler(schema)]}


def kind(value: Any) -> Any:
    """Expand a plain name to a mapping: `adamw` to `{kind: adamw}`."""
    return {"kind": value} if isinstance(value, str) else value
