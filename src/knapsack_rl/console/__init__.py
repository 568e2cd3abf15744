"""What all commands share: text that is safe to show, errors in one line, and tables that a user names."""
