"""Files that somebody has spoilt, given to everything that reads files: what comes of it is a result or an error in words."""
