# SPDX-License-Identifier: MIT
"""Hooks of modules: those that look on, and those that are a part of a forward.

transformers puts forward hooks on layers by itself, once hidden states or attentions are
asked for. They append to what the model's forward has in `_active_collector` then, and do
nothing else, so recording them with that forward is enough. Where a forward outside of the
checkpointed module collects, they are hooks like others: it waits for what they append.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

OF = "transformers.utils.output_capturing"
HOOKS = (  # what a plain call of a module would run
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def collecting_hooks(module: nn.Module) -> dict[int, Any]:
    """Of its forward hooks those of transformers."""
    hooks = module.__dict__["_forward_hooks"]
    return {key: hook for key, hook in hooks.items() if _is_of_transformers(hook)}


def has_other_hooks(module: nn.Module) -> bool:
    """Would its call run any that recording does not?"""
    own = module.__dict__
    if not any(own[name] for name in HOOKS):
        return False
    count = sum(len(own[name]) for name in HOOKS)
    return count > len(collecting_hooks(module)) or _is_collected_outside()


def _is_of_transformers(hook: Any) -> bool:
    return getattr(hook, "__module__", None) == OF


def _is_collected_outside() -> bool:
    collector = getattr(sys.modules[OF], "_active_collector", None)
    return collector is None or bool(collector.get())
