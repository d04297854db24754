"""Bytes and JSON: folders on disk and in object stores, records, regular files. Nothing here knows of networks."""
