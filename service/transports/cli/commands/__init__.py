"""The subcommands: arguments, help and exit statuses; each imports what it needs when it runs."""
