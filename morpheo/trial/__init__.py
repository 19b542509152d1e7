"""
``morpheo try``: an algo against a problem's sample, on the machine of the person who writes it.

The jobs are real ones: the runner, the steps and the sandbox of a worker, on a database and a blob store that last as
long as the trial. `morpheo.trial.run` runs them, `morpheo.trial.report` says what would fail.
"""
