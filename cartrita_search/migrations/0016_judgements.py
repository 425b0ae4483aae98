"""Staff's judgements of results, by which weights are chosen."""

import django.db.models.functions.datetime
from django.db import migrations, models

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0015_session_registry")]

    operations = [
        RunSQLFile("judging/search_judgements.v1.sql"),
        migrations.CreateModel(
            name="SearchJudgement",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("query_text", models.TextField(verbose_name="question")),
                ("source_table", models.TextField()),
                ("source_id", models.TextField()),
                ("chunk_index", models.IntegerField(blank=True, null=True)),
                ("grade", models.IntegerField()),
                ("judged_by", models.TextField(default="")),
                (
                    "judged_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
            ],
            options={
                "db_table": "search_judgements",
                "ordering": ("-id",),
                "managed": False,
            },
        ),
        RecordMigration("0016_judgements", "Staff's judgements of results"),
    ]
