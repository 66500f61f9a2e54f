"""`fewsight check`: what it finds of planted faults and copies, and its time as images grow."""
