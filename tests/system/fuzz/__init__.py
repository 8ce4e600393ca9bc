"""Programs and requests that nobody thought of, against registries of ours: does the page of the API hold?"""
