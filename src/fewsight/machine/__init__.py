"""The machine: cores and devices, processes, signals, files, random streams. The package itself imports no torch."""
