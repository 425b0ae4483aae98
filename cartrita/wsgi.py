"""The WSGI application: ``cartrita.wsgi:application``."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cartrita.settings")

application = get_wsgi_application()
