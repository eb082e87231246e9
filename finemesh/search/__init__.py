"""Finds points: knows spaces, samplers, executors and the study, and nothing of models."""
