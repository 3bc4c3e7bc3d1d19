"""Rules: written once, bound to columns and classes, and compiled to what a user needs."""
