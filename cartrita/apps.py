"""The project itself as an app: it brings the command ``embedded``."""

from django.apps import AppConfig


class CartritaConfig(AppConfig):
    """No models; see `cartrita.embedded`."""

    name = "cartrita"
