"""The Celery application, found by ``celery -A morpheo``."""

from celery import Celery

from morpheo import broker

broker.install()
app = Celery("morpheo")
app.config_from_object("celeryconfig")
