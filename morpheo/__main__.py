"""``python -m morpheo`` is the ``morpheo`` command."""

from morpheo.cli import main

if __name__ == "__main__":
    main()
