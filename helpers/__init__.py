"""The small package behind the five notebooks: one module for each room of the course.

Importing `helpers` imports nothing heavy. Import the module you need: `from helpers import data, training`.
"""
