"""`python -m fewsight` is the command."""

from fewsight.cli import main

main()
