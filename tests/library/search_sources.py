"""Found by its name when the project starts."""

from cartrita_search.sources import register_source

from .models import Article, Page

register_source(
    Article,
    title="headline",
    content="body",
    owner="author__person",
    tags="labels",
    metadata=lambda article: {"published": article.published} if article.published else {},
)
register_source(Page, content="text", source_table="pages")
