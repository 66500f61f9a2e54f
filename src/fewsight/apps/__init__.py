"""What is built on trained runs and their scores, a package for each command."""
