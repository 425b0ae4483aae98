"""The record of applied migrations: nothing of v1 is touched."""

import django.db.models.functions.datetime
from django.db import migrations, models

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        RunSQLFile("migration_guard/schema_migrations.v1.sql"),
        migrations.CreateModel(
            name="SchemaMigration",
            fields=[
                ("version", models.TextField(primary_key=True, serialize=False)),
                (
                    "applied_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                ("checksum", models.TextField()),
                ("description", models.TextField()),
                ("migration_type", models.TextField(db_default="schema")),
            ],
            options={
                "db_table": "schema_migrations",
                "ordering": ("applied_at",),
                "managed": False,
            },
        ),
        RecordMigration(
            "0001_initial_baseline", "The record of applied migrations: nothing of v1 is touched"
        ),
    ]
