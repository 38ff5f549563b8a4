"""The sides of the table, a file for each kind of work: a function takes a task, gets ready, and returns what is measured."""
