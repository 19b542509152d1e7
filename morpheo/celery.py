"""The Celery application, found by ``celery -A morpheo``."""

from celery import Celery

app = Celery("morpheo")
app.config_from_object("celeryconfig")
