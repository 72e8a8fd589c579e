"""How much of what the engine guessed ahead has stayed, by source."""

from __future__ import annotations

from app.ui.text import say
from contracts import Generator
from model.request import HasEngineLoad


def describe_drafts(generator: Generator) -> str:
    """Since the start; empty where the model runs elsewhere or nothing is guessed."""
    drafts = generator.engine_load.drafts if isinstance(generator, HasEngineLoad) else ()
    return "; ".join(
        say("model.drafts.value", source=draft.source, share=f"{draft.acceptance:.0%}", n=f"{draft.num_drafted:,}")
        for draft in drafts
    )
