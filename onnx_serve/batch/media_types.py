"""Media types as a batch job tells them apart: by their names, whatever parameters follow."""

__all__ = ["CSV", "JSON", "JSON_LINES", "RECORDIO", "bare"]

CSV = "text/csv"
JSON = "application/json"
JSON_LINES = ("application/jsonlines", "application/jsonl", "application/x-ndjson", "application/x-jsonlines")
RECORDIO = "application/x-recordio-protobuf"


def bare(media_type: str | None) -> str:
    """The name without parameters, in lower case; empty without one."""
    return (media_type or "").partition(";")[0].strip().lower()
