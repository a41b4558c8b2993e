"""Where the command ``echostill`` begins: the command line is loaded without searches for garbage.

Most questions take no longer than loading what answers them, and a quarter of that would go into
searching what the modules define, again and again and once more at the end of the process.
"""

from echostill.platform.lazy import loading


def main() -> None:
    """Load the command line and run it."""
    with loading():
        from echostill.jobs.cli.main import main as run
    run()
