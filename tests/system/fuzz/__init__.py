"""Programs and requests that are drawn at random, sent to registries of ours: does the page of the API hold?"""
