"""Model sources, and the manager that loads and evicts models within a memory budget."""
