"""Any page may ask a service: there are no cookies, and who asks shows an API key. These headers are on every answer."""

from __future__ import annotations

HEADERS: tuple[tuple[str, str], ...] = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Expose-Headers", "Inference-Header-Content-Length, Retry-After, Location"),
)

PREFLIGHT: tuple[tuple[str, str], ...] = (
    ("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"),
    ("Access-Control-Allow-Headers", "Authorization, Content-Type, Inference-Header-Content-Length, Prefer"),
    ("Access-Control-Max-Age", "7200"),
)
"""... and these on the answer to OPTIONS, which a browser asks first."""

RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS]
RAW_PREFLIGHT = [(name.lower().encode(), value.encode()) for name, value in PREFLIGHT]
