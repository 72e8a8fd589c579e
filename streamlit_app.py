"""Entry of the app: page settings, the services built once for all sessions, and the screens."""

from __future__ import annotations

import streamlit as st

from app.ui import session
from app.ui.dialog import begin_run
from app.ui.loading import load_services
from app.ui.screens import navigate
from app.ui.style import draw_style
from app.ui.text import say

st.set_page_config(page_title=say("app.name"), page_icon="app/ui/icon.svg", layout="wide")
begin_run()
draw_style()
screen = navigate()
if services := load_services():
    session.restore(services)
    screen.run()
