"""Recipes that come with `mu`: `mu pretrain full` reads `full.yaml` of this folder."""
