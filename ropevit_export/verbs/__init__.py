"""What the command line can do with a bundle besides making one; a module a verb."""
