"""Where the time goes, and how far that is from what the machine could do. Needs only the runtime."""
