"""The machine: cores and devices, processes, signals, files, random streams. Imports no torch by itself."""
