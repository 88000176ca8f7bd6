"""Run an exported model on images."""
