"""Find the layout that a team names, and tell one source of images from another."""

from __future__ import annotations

import hashlib

from workers.config.extensions import LAYOUTS
from workers.config.specs import DataSpec
from workers.data.layout import Layout


def source_of(spec: DataSpec) -> Layout:
    """Return the source of a data set's images."""
    return LAYOUTS[spec.dataset](spec)


def source_key(spec: DataSpec) -> str:
    """Return a name of the source without reading it whole: a hash of its kind, place, sizes, times and image size."""
    parts = [spec.dataset, spec.size, *source_of(spec).fingerprint()]
    if spec.validation == "fuse":  # a newer key counts only where it is used, so that what is packed stays found
        parts.append("val is fuse")
    if spec.duplicates == "drop":
        parts.append("without duplicates")
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
