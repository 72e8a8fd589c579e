"""What reading keeps besides the text: pages still to be recognised, line boxes, facts, warnings, confirmations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("documents", sa.Column("num_pages_pending", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("documents", sa.Column("is_confirmed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("documents", sa.Column("warnings", sa.LargeBinary(), nullable=True))
    op.add_column("pages", sa.Column("lines", sa.LargeBinary(), nullable=True))
    op.add_column("pages", sa.Column("facts", sa.LargeBinary(), nullable=True))
