"""A model for each type of primary key, and relations to follow."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models


class Author(models.Model):
    name = models.TextField()
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE)

    objects: ClassVar[models.Manager[Author]] = models.Manager()

    class Meta:
        app_label = "library"

    def __str__(self) -> str:
        return self.name


class Article(models.Model):
    headline = models.TextField()
    body = models.TextField(null=True)  # noqa: DJ001 - a source's column may be NULL
    author = models.ForeignKey(Author, null=True, on_delete=models.CASCADE)
    labels = ArrayField(models.TextField(), default=list)
    published = models.DateField(null=True)

    objects: ClassVar[models.Manager[Article]] = models.Manager()

    class Meta:
        app_label = "library"

    def __str__(self) -> str:
        return self.headline


class Letter(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    text = models.TextField()
    readers = models.ManyToManyField(Author)

    objects: ClassVar[models.Manager[Letter]] = models.Manager()

    class Meta:
        app_label = "library"

    def __str__(self) -> str:
        return str(self.id)


class Page(models.Model):
    slug = models.TextField(primary_key=True)
    text = models.TextField()

    objects: ClassVar[models.Manager[Page]] = models.Manager()

    class Meta:
        app_label = "library"

    def __str__(self) -> str:
        return self.slug
