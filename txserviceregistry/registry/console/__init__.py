"""The console: a page on which people see and change what the registry holds."""
