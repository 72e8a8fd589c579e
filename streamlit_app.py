"""Entry of the app: page settings, the services built once, and the screens."""

from __future__ import annotations

import streamlit as st

from app.ui import session
from app.ui.dialog import begin_run
from app.ui.failures import FAILURES
from app.ui.screens import navigate
from app.ui.style import draw_style
from app.ui.text import escape, say

st.set_page_config(page_title=say("app.name"), page_icon="app/ui/icon.svg", layout="wide")
begin_run()
draw_style()
try:
    services = session.get_services()
except FAILURES as error:
    st.error(escape(str(error)), title=say("app.failed"))
    st.stop()
screen = navigate()
session.restore(services)
screen.run()
