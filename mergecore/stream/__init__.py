"""From a plan to the bytes of the weight files: reading, computing and writing tiles by position."""
