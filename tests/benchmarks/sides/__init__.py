"""The sides of the table, by kind of work: a function takes a task, gets ready, and returns what is measured."""
