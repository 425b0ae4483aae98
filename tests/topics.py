"""A few documents and an embedder of three topics: which comes first depends on the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.test import override_settings

from cartrita_search.ingest import Document, upsert_documents

TOPICS = (("car", "automobile", "vehicle", "motor"), ("garden", "flower", "lawn"))
QUESTION = "car"
SCRIPT = "<script>document.title = 'owned'</script>"

#: By meaning alone; by its word alone; neither's own but with a script for a title.
BY_MEANING = ("by-meaning", "Automobile", "A motor vehicle with four wheels, an automobile.")
BY_WORD = ("by-word", "Garden", "The garden, its lawn, a flower, a flower, and one toy car.")
SCRIPTED = ("scripted", f"{SCRIPT} car", f"Garden lawn and flower, no car {SCRIPT} but a lawn.")


class TopicEmbedder:
    """How often a text speaks of each of `TOPICS`, and a little of nothing."""

    name = "topics"
    dimensions = 3
    batch_size = 10

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        vectors = []
        for text in texts:
            counts = [sum(text.lower().count(word) for word in topic) for topic in TOPICS]
            values = [*counts, 0.1]
            norm = math.hypot(*values)
            vectors.append([value / norm for value in values])
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def embedded_by_topics(embedder: str | None = f"{__name__}.TopicEmbedder") -> Any:
    return override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"EMBEDDER": embedder})


def load_topics(user: User | None = None) -> None:
    """The three documents: the first is the person's, the others are shared."""
    embedder = TopicEmbedder()
    documents = []
    for (key, title, text), owner in zip(
        (BY_MEANING, BY_WORD, SCRIPTED), (user, None, None), strict=True
    ):
        vector = embedder.embed_query(f"{title} {text}")
        owner_id = None if owner is None else owner.pk
        documents.append(Document("notes", key, title, text, vector, user_id=owner_id))
    upsert_documents(documents, model=embedder.name, index="keep")
