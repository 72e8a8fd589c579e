"""The little that the theme cannot say: an evidence pane that stays in view, phone widths, and a chosen segment in the
colour of text: the theme gives it that of the buttons, which white reads well on, but which is 3.7:1 on a dark ground
(WCAG AA: 4.5:1). Static CSS only."""

from __future__ import annotations

import streamlit as st

_STYLE = """
<style>
  .stMainBlockContainer, [data-testid="stBottomBlockContainer"] {
    padding-left: clamp(1rem, 3vw, 3rem);
    padding-right: clamp(1rem, 3vw, 3rem);
  }
  [data-testid="stBottomBlockContainer"] { padding-top: .5rem; padding-bottom: 1.25rem; }
  [data-testid="stBottomBlockContainer"] > .stVerticalBlock { gap: .4rem; }
  [data-testid="stSidebarUserContent"] { padding-top: 1.5rem; }
  .stColumn:has(.st-key-evidence) { position: sticky; top: 3.5rem; align-self: flex-start; }
  .st-key-evidence { max-height: calc(100vh - 13.5rem); overflow-y: auto; }
  .st-key-evidence img { border: 1px solid rgba(128, 128, 128, .35); }
  .st-key-history button, .st-key-history button > div { justify-content: flex-start; text-align: left; }
  .st-key-history [data-testid="stMenuButton"] [data-testid="stMarkdownContainer"] {
    position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  }
  .st-key-history [data-testid="stMenuButton"] button > div > div:last-child { display: none; }
  .stButtonGroup button[data-variant="segmented_control"][role="radio"]:not(:disabled) { color: inherit; }
  @media (max-width: 640px) { .stColumn:has(.st-key-evidence) { display: none; } }
</style>
"""


def draw_style() -> None:
    st.html(_STYLE)
