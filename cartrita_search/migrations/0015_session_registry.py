"""Sessions in Redis, and their revocation."""

from django.db import migrations

from cartrita_search.migration_operations import RecordMigration, RunSQLFile


class Migration(migrations.Migration):
    dependencies = [("cartrita_search", "0014_result_cache")]

    operations = [
        RunSQLFile("sessions/redis_sessions_revoked_at.v1.sql"),
        migrations.AlterModelOptions(
            name="redissession",
            options={
                "ordering": ("-created_at",),
                "permissions": (("revoke_redissession", "Can revoke sessions and other entries"),),
                "managed": False,
            },
        ),
        RecordMigration("0015_session_registry", "Sessions in Redis, and their revocation"),
    ]
