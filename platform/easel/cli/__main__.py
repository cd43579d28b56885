"""`python -m easel.cli`: the same command where the package is on the path and not installed."""

from easel.cli import main

if __name__ == "__main__":
    main()
