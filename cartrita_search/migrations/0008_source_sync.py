"""Sources kept in step: how far each has come."""

import django.db.models.functions.datetime
from django.db import migrations, models

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0007_embedding_work")]

    operations = [
        RunSQLFile("sources/source_checkpoints.v1.sql"),
        migrations.CreateModel(
            name="SourceCheckpoint",
            fields=[
                ("source_table", models.TextField(primary_key=True, serialize=False)),
                ("last_key", models.TextField(null=True)),
                ("rows", models.BigIntegerField(default=0)),
                (
                    "started_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                (
                    "updated_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
            ],
            options={
                "db_table": "source_checkpoints",
                "ordering": ("source_table",),
                "managed": False,
            },
        ),
        RecordMigration("0008_source_sync", "Sources kept in step: how far each has come"),
    ]
