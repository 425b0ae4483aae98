"""Generations of cached search results."""

import django.db.models.functions.math
from django.db import migrations, models

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0013_search_history")]

    operations = [
        RunSQLFile("cache/search_generations.v1.sql"),
        RunSQLFile("cache/generation_slots.v1.sql"),
        RunSQLFile("cache/sweep_generations.v1.sql"),
        RunSQLFile("cache/advance_generation.v1.sql"),
        RunSQLFile("cache/search_generation.v1.sql"),
        RunSQLFile("cache/invalidate_search_cache.v1.sql"),
        RunSQLFile("cache/renew_cache_identity.v1.sql"),
        migrations.CreateModel(
            name="SearchGeneration",
            fields=[
                ("namespace", models.TextField()),
                ("slot", models.SmallIntegerField()),
                ("revision", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "stamp",
                    models.FloatField(db_default=django.db.models.functions.math.Random()),
                ),
            ],
            options={
                "db_table": "search_generations",
                "ordering": ("-revision",),
                "managed": False,
            },
        ),
        migrations.AlterField(
            model_name="cacheinvalidation",
            name="invalidated_by",
            field=models.TextField(
                db_default=models.Func(
                    function="CURRENT_USER",
                    template="%(function)s",
                    output_field=models.TextField(),
                )
            ),
        ),
        # Last, for writers wait for them until the commit.
        RunSQLFile("cache/follow_search_generation.v1.sql"),
        RunSQLFile("cache/log_cache_invalidation.v1.sql"),
        RecordMigration("0014_result_cache", "Generations of cached search results"),
    ]
