"""OpenAI-Batch lines: calls of two endpoints in, their responses out. Knows neither files nor the engine."""
