"""The command line as a module: python -m segdistill."""

from segdistill.cli import app

if __name__ == "__main__":
    app()
