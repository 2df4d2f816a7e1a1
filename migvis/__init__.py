"""MIG-Vis: what does each group of latent dimensions of a neural population in visual cortex encode?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from migvis.bundle import Bundle, load

__all__ = ["Bundle", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `Bundle`, imported when first used: torch takes seconds, and a mistake in a command should not wait for it."""
    if name in __all__:
        from migvis import bundle

        return getattr(bundle, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
