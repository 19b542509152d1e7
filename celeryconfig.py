"""
Settings of Celery. URLs and limits come from `morpheo.config`.

The database holds the outcome of every job, so there is no result backend, and a lost or doubled message is harmless:
a lease in the database, not the broker, decides who runs a job.
"""

import sys

from kombu import Exchange, Queue

from morpheo.config import Settings
from morpheo.errors import SettingsError
from morpheo.queues import consumed as _consumed

try:
    _settings = Settings.from_env()
except SettingsError as exc:
    sys.exit(f"Error: {exc}")
_longest_job_s = _settings.longest_job_s

broker_url = _settings.broker
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_channel_error_retry = True  # a broker that refuses, as in a failover, is one that is out: it ends no worker
# An unacknowledged message comes back after this time; sooner would only wake workers for nothing.
visibility_timeout = _longest_job_s + 900
broker_transport_options: dict[str, object] = (
    # RabbitMQ: a message counts as published when the broker has said that it has it.
    {"confirm_publish": True}
    if broker_url.startswith("amqp")
    else {
        "visibility_timeout": visibility_timeout,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        # A worker that dies while it gives messages back keeps the others from it for as long.
        "unacked_mutex_expire": 30,
        "socket_keepalive": True,
        "socket_connect_timeout": 5,
        "socket_timeout": 15,  # or a broker that hangs would hold a request of the API for ever
        "health_check_interval": 10,  # a connection that only the worker still knows is noticed so soon
    }
)

result_backend = None
task_ignore_result = True
task_serializer = "json"
accept_content = ["json"]
imports = ("morpheo.tasks",)

# What a worker consumes that is not told otherwise; queues of other tags are made when a job first goes to them.
task_queues = [
    Queue(name, Exchange(name), routing_key=name) for names in _consumed(_settings.queues).values() for name in names
]
task_default_queue = "learn"
task_acks_late = True
task_reject_on_worker_lost = False  # the lease redelivers, and counts
task_publish_retry = True
task_publish_retry_policy = {"max_retries": 1, "interval_start": 0.2}
task_time_limit = _longest_job_s + 600
task_soft_time_limit = _longest_job_s + 300
task_send_sent_event = True

# A forked process would inherit what the sweeper's thread held at that moment: SQLite's locks for ever, for one.
worker_pool_start_method = "spawn"
worker_proc_alive_timeout = 60
worker_concurrency = _settings.jobs_at_once or 1
worker_prefetch_multiplier = 1
worker_send_task_events = True
worker_hijack_root_logger = False
worker_cancel_long_running_tasks_on_connection_loss = False
worker_soft_shutdown_timeout = _settings.stop_grace_s  # `morpheo.tasks.stopping` waits no longer than it must
worker_enable_soft_shutdown_on_idle = False
