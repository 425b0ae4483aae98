"""The scripts that distribute over Citus, as far as plain PostgreSQL can run them.

Citus itself is not here: its functions are stood in for by ones that do nothing, so what
is held is that keys, constraints and functions fit this schema, and find the same.
"""

from __future__ import annotations

import psycopg
import pytest
from django.conf import settings

from .conftest import Connect
from .postgres import scalar, upsert, vector_text

SCRIPTS = sorted((settings.BASE_DIR / "docs" / "citus").glob("*.sql"))

#: create_reference_table(regclass), …: of the same names and argument names.
_STAND_INS = """
CREATE FUNCTION public.create_reference_table(regclass) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION public.create_distributed_table(
    regclass, text, colocate_with text DEFAULT 'default') RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION public.create_distributed_function(
    regprocedure, text, colocate_with text) RETURNS void LANGUAGE sql AS 'SELECT';
"""


@pytest.mark.django_db
@pytest.mark.usefixtures("clean_tables")
def test_after_the_scripts_owners_find_what_they_found_before(
    connect: Connect, pg: psycopg.Connection
) -> None:
    for n in range(12):
        owner = (None, 7, 8)[n % 3]
        upsert(pg, str(n), [1, n / 10], p_title=f"Tea {n}", p_content="Steep.", p_user_id=owner)
    query = vector_text([1, 0.4])
    before = pg.execute(
        "SELECT source_id, similarity FROM similarity_search(%s, match_count => 5,"
        " user_id_filter => 7)",
        [query],
    ).fetchall()
    with connect(autocommit=False) as distributed:
        distributed.execute(_STAND_INS)
        for script in SCRIPTS:
            distributed.execute(script.read_text(encoding="utf-8").encode())
        after = distributed.execute(
            "SELECT source_id, similarity FROM owner_similarity_search(7, %s, 'mini', 5)", [query]
        ).fetchall()
        assert [key for key, _ in after] == [key for key, _ in before]
        assert [value for _, value in after] == pytest.approx([value for _, value in before])

        store = "SELECT owner_upsert(7, 'notes', '1', %s, 'mini', 'Tea', 'Steep longer.')"
        kept = scalar(distributed, store, [query])
        assert scalar(distributed, store, [query]) == kept
        assert distributed.execute(
            "SELECT user_id, content, search_vector @@ 'longer' FROM search_documents"
            " WHERE id = %s",
            [kept],
        ).fetchall() == [(7, "Steep longer.", True)]
        # The same source row of another owner is another document.
        assert scalar(distributed, store.replace("(7,", "(8,"), [query]) != kept
        distributed.rollback()
    assert len(SCRIPTS) == 3
