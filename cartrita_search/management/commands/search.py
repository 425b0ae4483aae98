"""``manage.py search``: one search from the command line."""

import json
from argparse import BooleanOptionalAction
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.core.management.base import BaseCommand, CommandError, CommandParser

from cartrita_search.errors import InvalidArgument, SearchError, search_errors
from cartrita_search.models import SearchDocument
from cartrita_search.retrieval import Options, keyword_search, search, similarity_search
from cartrita_search.terminal import table


class Command(BaseCommand):
    """See ``help``."""

    help = (
        "Search all documents, or those that one user may see. Exit status: 0 searched, whether"
        " or not anything was found; 1 the search was refused, or a user or source is unknown;"
        " 2 the command line cannot be read."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """The text, and the options of `retrieval.search`."""
        parser.add_argument("text")
        parser.add_argument("--user", help="username or id: their documents, their weights")
        parser.add_argument("--limit", type=int, help="results at most (default: 10, or theirs)")
        parser.add_argument("--offset", type=int, default=0, help="results to pass over")
        parser.add_argument(
            "--source",
            action="append",
            metavar="TABLE",
            help="only documents of this table; again for several",
        )
        parser.add_argument(
            "--tag",
            action="append",
            metavar="TAG",
            help="only documents with this tag; again for several, all of which they must have",
        )
        parser.add_argument("--model", metavar="NAME", help="embedding model")
        legs = parser.add_mutually_exclusive_group()
        legs.add_argument("--weights", metavar="VECTOR,KEYWORD", help="in [0, 1], sum 1: 0.7,0.3")
        legs.add_argument("--vector-only", action="store_true", help="by meaning alone")
        legs.add_argument("--keyword-only", action="store_true", help="by words alone")
        parser.add_argument(
            "--rerank",
            action=BooleanOptionalAction,
            help="re-score the best (default: as the user's configuration says)",
        )
        parser.add_argument("--json", action="store_true", help="print the hits as JSON")

    def handle(self, *args: Any, text: str, **options: Any) -> None:
        """Search and print."""
        try:
            with search_errors():
                user = _user(options["user"])
                _check_sources(options["source"] or ())
            chosen: Options = {
                "user": user,
                "limit": options["limit"],
                "offset": options["offset"],
                "source": options["source"],
                "tags": options["tag"],
                "model": options["model"],
                "explain": options["json"],
                "rerank": options["rerank"],
            }
            if options["keyword_only"]:
                hits = keyword_search(text, **chosen)
            elif options["vector_only"]:
                hits = similarity_search(text, **chosen)
            else:
                vector_weight, keyword_weight = _weights(options["weights"])
                hits = search(
                    text, vector_weight=vector_weight, keyword_weight=keyword_weight, **chosen
                )
        except SearchError as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps([asdict(hit) for hit in hits], default=str, indent=2))
        elif not hits:
            self.stdout.write("Nothing was found.")
        else:
            self.stdout.write(
                table(
                    ["#", "title", "source", "matched_by", "cosine", "BM25", "score"],
                    [
                        (
                            rank,
                            hit.title or hit.content[:200],
                            f"{hit.source_table}/{hit.source_id}#{hit.chunk_index}",
                            hit.matched_by,
                            hit.vector_similarity,
                            hit.keyword_score,
                            hit.hybrid_score,
                        )
                        for rank, hit in enumerate(hits, options["offset"] + 1)
                    ],
                    right=[0, 4, 5, 6],
                )
            )


def _user(name_or_id: str | None) -> AbstractBaseUser | None:
    if name_or_id is None:
        return None
    users = get_user_model()._default_manager
    user = users.filter(**{get_user_model().USERNAME_FIELD: name_or_id}).first()
    if user is None and name_or_id.isdecimal():
        user = users.filter(pk=name_or_id).first()
    if user is None:
        raise CommandError(f"There is no user {name_or_id!r}, by name or by id.")
    return user


def _check_sources(names: Iterable[str]) -> None:
    for name in names:
        if not SearchDocument.objects.filter(source_table=name).exists():
            raise InvalidArgument(
                f'There are no documents of source "{name}".',
                "The admin's page of documents lists the sources.",
            )


def _weights(pair: str | None) -> tuple[float, float] | tuple[None, None]:
    if pair is None:
        return None, None
    try:
        vector_weight, keyword_weight = map(float, pair.split(","))
    except ValueError as error:
        raise CommandError(f"--weights takes two numbers, as in 0.7,0.3; not {pair!r}.") from error
    return vector_weight, keyword_weight
