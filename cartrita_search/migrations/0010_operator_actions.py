"""What operators did to the database: ended sessions, backups, rebuilds."""

import django.db.models.functions.datetime
from django.db import migrations, models

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0009_reweigh_keywords")]

    operations = [
        RunSQLFile("operations/operator_actions.v1.sql"),
        migrations.CreateModel(
            name="OperatorAction",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("action", models.TextField()),
                ("subject", models.TextField(default="")),
                ("outcome", models.TextField(default="done")),
                ("reason", models.TextField(default="")),
                (
                    "role",
                    models.TextField(
                        db_default=models.Func(
                            function="CURRENT_USER",
                            template="%(function)s",
                            output_field=models.TextField(),
                        )
                    ),
                ),
                ("operator", models.TextField(default="")),
                (
                    "occurred_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                ("details", models.JSONField(default=dict)),
            ],
            options={
                "db_table": "operator_actions",
                "ordering": ("-id",),
                "managed": False,
            },
        ),
        RecordMigration("0010_operator_actions", "What operators did: the record of it"),
    ]
