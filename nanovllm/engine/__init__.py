"""The engine: schedules sequences of token ids, runs steps, samples. Knows nothing of text or files of prompts."""
